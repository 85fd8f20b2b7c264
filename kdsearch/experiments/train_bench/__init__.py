"""Time the training loop against a plain PyTorch loop, and compare training recipes."""
