"""What tests of the command line share; the fixture `kdsearch` runs a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


def refused(result: Result, *words: str) -> str:
    """One line on stderr with these words, nothing on stdout, exit code 1; returns what the line says."""
    assert result.code == 1
    assert result.out == ""
    assert result.err.startswith("kdsearch: error: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err
    return result.err.removeprefix("kdsearch: error: ").rstrip("\n")
