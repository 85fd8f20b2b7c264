"""What tests of the command line share; the fixture `kdsearch` runs a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

PHOTOS_STUDY = """
[data]
name = "folder"
image_size = 8
validation = 0.25
[teacher]
family = "cnn"
seed = 0
[teacher.recipe]
optimizer = "adam"
lr = 2e-3
epochs = 3
batch_size = 16
[student]
family = "mlp"
threads = 1
[latency]
batch = 50
[space]
width = [4, 8]
loss_weight = 0.5
temperature = 4.0
epochs = 1
batch_size = 16
"""
"""Study file of the images of the fixture `photos`, which trains for seconds."""


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
