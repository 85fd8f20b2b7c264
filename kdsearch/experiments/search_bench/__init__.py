"""Replays of searches on tables of real learning curves."""
