"""CIFAR-10 (Krizhevsky 2009): torchvision's files, or class folders of images as common mirrors have them."""

from __future__ import annotations

from pathlib import Path

import torch

from kdsearch.data.base import Dataset, ImageSet
from kdsearch.data.download import torchvision_set
from kdsearch.data.folder import read_classes
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = "cifar-10-batches-py"


def _from_folders(root: Path, *, train: bool) -> ImageSet:
    classes, images = read_classes(root / ("train" if train else "test"), size=None)
    if classes != CLASSES or images.images.shape[1:] != (3, 32, 32):
        raise DataError(
            "CIFAR-10's class folders must hold 32x32 colour images of its ten classes",
            got=f"{root}: {', '.join(classes)}; {tuple(images.images.shape[1:])}",
            remedy="name the right folder with --data-dir, or use --dataset folder:PATH for other images",
        )
    return images


def _from_batches(folder: Path, *, train: bool) -> ImageSet:
    part = torchvision_set("CIFAR10", folder, BATCHES, train=train)
    return ImageSet(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))


def load(spec: DataSpec, folder: Path) -> Dataset:
    """Load CIFAR-10 from `folder`/cifar10/{train,test}/CLASS, else by torchvision, downloaded where it is missing.

    Raises:
        DataError: files are missing and cannot be downloaded, or are broken.
    """
    root = folder / "cifar10"
    if root.is_dir() and not (folder / BATCHES).is_dir():
        train, test = (_from_folders(root, train=part) for part in (True, False))
    else:
        train, test = (_from_batches(folder, train=part) for part in (True, False))
    return Dataset(name="cifar10", classes=CLASSES, train=train, test=test, mean=0.5, std=0.5)
