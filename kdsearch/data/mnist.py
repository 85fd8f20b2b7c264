"""MNIST (LeCun, Cortes, Burges 1998) by torchvision's loader."""

from __future__ import annotations

from pathlib import Path

import torch

from kdsearch.data.base import Dataset, ImageSet
from kdsearch.data.download import torchvision_set
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec

COUNTS = {True: 60_000, False: 10_000}


def _part(folder: Path, *, train: bool) -> ImageSet:
    part = torchvision_set("MNIST", folder, "MNIST/raw", train=train)
    images, labels = part.data, part.targets
    if len(images) != COUNTS[train] or len(labels) != COUNTS[train]:
        raise DataError(
            f"MNIST's {'training' if train else 'test'} set must hold {COUNTS[train]} images and as many labels",
            got=f"{len(images)} and {len(labels)}",
            remedy=f"delete {folder / 'MNIST'} and run again to download it",
        )
    return ImageSet(images.unsqueeze(1), labels.to(torch.int64))


def load(spec: DataSpec, folder: Path) -> Dataset:
    """Load MNIST from `folder`/MNIST/raw, downloaded there where it is missing.

    Raises:
        DataError: files are missing and cannot be downloaded, or are broken.
    """
    train, test = (_part(folder, train=part) for part in (True, False))
    return Dataset(name="mnist", classes=tuple("0123456789"), train=train, test=test)
