"""Experiments as commands: the slides' rows, the deck's claims, and benchmarks of search and training."""
