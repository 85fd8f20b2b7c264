"""Load torchvision's data sets from disk, else download them, with one clear line for each failure."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from kdsearch.errors import DataError


def torchvision_set(name: str, folder: Path, inside: str, *, train: bool) -> Any:
    """Return a data set of `torchvision.datasets` with its tensors in `.data` and `.targets`.

    Args:
        name: class in `torchvision.datasets`.
        folder: its `root`.
        inside: path of its files below `folder`, for messages.
        train: the training set, else the test set.

    Raises:
        DataError: files are missing and cannot be downloaded, or are broken.
    """
    from torchvision import datasets

    where = folder / inside
    there = where.is_dir()
    try:
        if not there:
            folder.mkdir(parents=True, exist_ok=True)
        return getattr(datasets, name)(folder, train=train, download=not there)
    except (OSError, RuntimeError) as error:
        if there:
            raise _broken(name, where, error) from None
        _remove_empty(where, folder)
        raise DataError(
            f"{name} must be there or be downloadable: {error}",
            got=where,
            remedy="put its files there, name their folder with --data-dir or KDSEARCH_DATA_DIR, or check the network",
        ) from None
    except (AssertionError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise _broken(name, where, error) from None


def _remove_empty(where: Path, folder: Path) -> None:
    """Remove the empty folders that a failed download left, which would look like a broken data set."""
    for path in (where, *where.parents):
        if path == folder.parent or not path.is_dir() or any(path.iterdir()):
            return
        path.rmdir()


def _broken(name: str, where: Path, error: Exception) -> DataError:
    reason = str(error).partition(" You can use download=True")[0] or type(error).__name__
    return DataError(
        f"{name}'s files must be whole: {reason}",
        got=where,
        remedy="delete that folder and run again to download it",
    )
