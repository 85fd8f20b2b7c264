"""The command line."""

from kdsearch.cli.app import main

__all__ = ["main"]
