"""Data sets as whole tensors: one file a data set, and the registry of their names.

Others use `decoded`, `folder`, `listing`, `pictures`, `views`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from kdsearch.data.base import (
    Dataset,
    ImageSet,
    Split,
    check,
    fingerprint,
    flatness,
    repeated,
    split,
    stratified,
    whole,
)
from kdsearch.data.stored import Images, Stored
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec
from kdsearch.system import plugins

Loader = Callable[[DataSpec, Path], Dataset]
"""Loads a whole data set from a study's `[data]` and the data folder; downloads what is missing where it can."""

BUILT_IN = {
    "digits": "kdsearch.data.digits:load",
    "mnist": "kdsearch.data.mnist:load",
    "cifar10": "kdsearch.data.cifar10:load",
    "folder": "kdsearch.data.folder:load",
}


def names() -> list[str]:
    """Return the names of all data sets, including those of other packages."""
    return plugins.names("datasets", BUILT_IN)


def _loader(name: str) -> Loader:
    kind = name.partition(":")[0]
    loader: Loader | None = plugins.find("datasets", kind, BUILT_IN)
    if loader is None:
        raise DataError(
            "a data set must be known",
            got=kind,
            remedy=f"choose one of {', '.join(names())} (folder as folder:PATH), or install the package that brings it",
        )
    return loader


def check_name(name: str) -> None:
    """Refuse an unknown data set before anything else is done.

    Raises:
        DataError: the name is unknown.
    """
    _loader(name)


def load(spec: DataSpec, folder: Path) -> Dataset:
    """Load a whole data set from a folder, or download it there, with a note where its images are nearly constant.

    Raises:
        DataError: the data set is unknown, missing or broken.
    """
    dataset = _loader(spec.name)(spec, folder)
    if (kind := spec.name.partition(":")[0]) not in BUILT_IN:
        check(dataset, kind)
    return dataclasses.replace(dataset, notes=(*dataset.notes, *flatness(dataset)))


__all__ = [
    "Dataset", "ImageSet", "Images", "Split", "Stored", "check", "check_name", "fingerprint", "load", "names",
    "repeated", "split", "stratified", "whole",
]  # fmt: skip
