"""The training loop timed against a plain PyTorch loop, and recipes compared."""
