"""Benchmarks as commands: tables of real learning curves, and replays of searches on them."""
