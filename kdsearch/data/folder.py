"""Any images in class folders: PATH/train/CLASS/FILE and PATH/test/CLASS/FILE."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from kdsearch.data.base import Dataset, ImageSet
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
DEFAULT_SIZE = 32


def _read(path: Path, size: int | None) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            colour = image.convert("RGB")
            if size is not None and colour.size != (size, size):
                colour = colour.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(colour, dtype=np.uint8)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"an image must be readable: {reason}", got=path, remedy="replace or remove it") from None


def read_classes(root: Path, *, size: int | None) -> tuple[tuple[str, ...], ImageSet]:
    """Reads the class folders below `root`.

    Args:
        root: holds one folder a class; the classes' order is that of their names.
        size: pixels to resize height and width to; None: all images must have one size.

    Returns:
        The classes' names, and images of shape (count, 3, height, width).

    Raises:
        DataError: no folder, fewer than two classes, an empty class, an unreadable image, mixed sizes.
    """
    if not root.is_dir():
        raise DataError(
            "class folders must be there",
            got=root,
            remedy="lay images out as PATH/train/CLASS/ and PATH/test/CLASS/",
        )
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < 2:
        raise DataError(
            "there must be at least two classes, a folder each",
            got=f"{len(folders)} in {root}",
            remedy="add a folder for each class",
        )
    files = [[f for f in sorted(folder.iterdir()) if f.suffix.lower() in ENDINGS] for folder in folders]
    for folder, found in zip(folders, files, strict=True):
        if not found:
            raise DataError("a class folder must hold images", got=folder, remedy="add images or remove the folder")
    paths = [path for found in files for path in found]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the interpreter's lock
        arrays = list(pool.map(lambda path: _read(path, size), paths))
    sizes = {array.shape for array in arrays}
    if len(sizes) > 1:
        raise DataError("images must have one size", got=f"{len(sizes)} sizes in {root}", remedy="resize them")
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor([label for label, found in enumerate(files) for _ in found])
    return tuple(folder.name for folder in folders), ImageSet(images, labels)


def load(spec: DataSpec, folder: Path) -> Dataset:
    """The class folders that `folder:PATH` names, resized to the study's `image_size` (32 without one).

    Raises:
        DataError: no path, or `read_classes` refuses, or train and test differ in their classes.
    """
    _, _, path = spec.name.partition(":")
    if not path:
        raise DataError("a folder of images needs its path", got=spec.name, remedy="give --dataset folder:PATH")
    root = Path(path).expanduser()
    size = spec.image_size or DEFAULT_SIZE
    classes, train = read_classes(root / "train", size=size)
    test_classes, test = read_classes(root / "test", size=size)
    if test_classes != classes:
        odd = ", ".join(sorted(set(classes) ^ set(test_classes)))
        raise DataError("train and test must have the same classes", got=odd, remedy="add or remove these folders")
    return Dataset(name=spec.name, classes=classes, train=train, test=test, mean=0.5, std=0.5)
