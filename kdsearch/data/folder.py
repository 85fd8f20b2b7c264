"""Any images in class folders: PATH/train/CLASS/FILE and, where there is a test set, PATH/test/CLASS/FILE."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import torch

from kdsearch.data import decoded, pictures
from kdsearch.data.base import Dataset, ImageSet, stratified
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec
from kdsearch.system import machine

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
DEFAULT_SIZE = 32
TEST_SHARE = 0.2  # of a folder without test images, by class
TEST_SEED = 0  # not the study's: the test images are the same for every study of a folder
COPIES = 2  # of the images in memory, while they are split
UNEVEN = 2  # times as many images of one class as of another are worth a line
NAMED = 3  # unreadable images in an error


@dataclass(frozen=True)
class Listing:
    """The image files of class folders.

    Attributes:
        classes: their names, in order.
        files: of each class, in order.
    """

    classes: tuple[str, ...]
    files: tuple[list[Path], ...]

    @property
    def paths(self) -> list[Path]:
        """All files, class by class."""
        return list(chain.from_iterable(self.files))

    @property
    def labels(self) -> torch.Tensor:
        """Their labels, (files,), int64."""
        return torch.tensor([label for label, found in enumerate(self.files) for _ in found])


def list_classes(root: Path) -> Listing:
    """The class folders below `root`; the classes' order is that of their names.

    Raises:
        DataError: no folder, fewer than two classes, or an empty class.
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
    files = tuple(
        [f for f in sorted(folder.iterdir(), key=lambda file: file.name) if f.suffix.lower() in ENDINGS]
        for folder in folders
    )
    for folder, found in zip(folders, files, strict=True):
        if not found:
            raise DataError("a class folder must hold images", got=folder, remedy="add images or remove the folder")
    return Listing(tuple(folder.name for folder in folders), files)


def check_memory(count: int, size: int, free: int | None) -> None:
    """Refuses images that would not fit into memory.

    Args:
        count: of the images.
        size: their height and width.
        free: bytes; None: nobody knows.

    Raises:
        DataError: they would not; the line names a size that would.
    """
    needed = COPIES * count * 3 * size**2
    if free is None or needed <= free:
        return
    fitting = int((free / (COPIES * 3 * count)) ** 0.5)
    raise DataError(
        f"the images must fit into memory: {count:,} of 3x{size}x{size} take {needed / 1e9:.1f} GB to split",
        got=f"{free / 1e9:.1f} GB free",
        remedy=f"set image_size = {fitting} or less under [data]" if fitting >= 4 else "use fewer images",
    )


def read_files(paths: Sequence[Path], size: int | None) -> torch.Tensor:
    """Reads image files, or what was kept of them decoded (`decoded.load`); as `decode_files`."""
    key = f"{size} {pictures.version()}"
    return decoded.load(paths, lambda: {"images": decode_files(paths, size)}, key)["images"]


def decode_files(paths: Sequence[Path], size: int | None) -> torch.Tensor:
    """Decodes image files.

    Args:
        paths: at least one.
        size: pixels to resize height and width to; None: all images must have one size.

    Returns:
        (files, 3, height, width), uint8.

    Raises:
        DataError: unreadable images, all counted and the first named, or mixed sizes.
    """
    images: torch.Tensor | None = None
    broken: list[str] = []
    odd: set[tuple[int, ...]] = set()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the interpreter's lock
        for index, found in enumerate(pool.map(pictures.read, paths, repeat(size))):
            if isinstance(found, str):
                broken.append(f"{found}: {paths[index]}")
                continue
            if images is None:
                images = torch.zeros(len(paths), *found.shape, dtype=torch.uint8)
            if found.shape == images.shape[1:]:
                images[index] = torch.from_numpy(found.copy())
            else:
                odd |= {found.shape, tuple(images.shape[1:])}
    if broken:
        more = "; ..." if len(broken) > NAMED else ""
        raise DataError(
            f"an image must be readable, and {len(broken)} of {len(paths):,} are not",
            got="; ".join(broken[:NAMED]) + more,
            remedy="replace or remove it" if len(broken) == 1 else "replace or remove them",
        )
    if odd or images is None:
        raise DataError("images must have one size", got=f"{len(odd)} sizes in {paths[0].parent}", remedy="resize them")
    return images.permute(0, 3, 1, 2).contiguous()


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
    listing = list_classes(root)
    return listing.classes, ImageSet(read_files(listing.paths, size), listing.labels)


def load(spec: DataSpec, folder: Path) -> Dataset:
    """The class folders that `folder:PATH` names, resized to the study's `image_size` (32 without one).

    Where PATH has no test folder, a share of the training images becomes the test set: by class, the same each time.

    Raises:
        DataError: no path, `list_classes`, `check_memory` or `read_files` refuses, or train and test differ in their
            classes.
    """
    _, _, path = spec.name.partition(":")
    if not path:
        raise DataError("a folder of images needs its path", got=spec.name, remedy="give --dataset folder:PATH")
    root = Path(path).expanduser()
    size = spec.image_size or DEFAULT_SIZE
    train = list_classes(root / "train")
    test = list_classes(root / "test") if (root / "test").exists() else Listing(train.classes, ())
    if test.classes != train.classes:
        odd = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise DataError("train and test must have the same classes", got=odd, remedy="add or remove these folders")
    check_memory(len(train.paths) + len(test.paths), size, machine.free_memory())
    images = read_files(train.paths + test.paths, size)
    whole = ImageSet(images, torch.cat([train.labels, test.labels]).to(torch.int64))
    notes = _unevenness(train)
    if test.files:
        parts = torch.arange(len(train.paths)), torch.arange(len(train.paths), len(whole))
    else:
        parts, note = _held_out(whole, spec.test or TEST_SHARE, root)
        notes.append(note)
    return Dataset(
        name=spec.name, classes=train.classes, train=whole.subset(parts[0]), test=whole.subset(parts[1]), mean=0.5,
        std=0.5, notes=tuple(notes),
    )  # fmt: skip


def _held_out(whole: ImageSet, share: float, root: Path) -> tuple[tuple[torch.Tensor, torch.Tensor], str]:
    """Indices of the training and test images of a folder that has no test images, and a line that says so."""
    count = round(len(whole) * share)
    test, rest = stratified(whole.labels, count, TEST_SEED, "the test set")
    return (rest, test), (
        f"{root} has no test folder: {count:,} of its {len(whole):,} images, by class, are the test set "
        f"([data] test = {share:g})"
    )


def _unevenness(listing: Listing) -> list[str]:
    """A line for classes of which one has much more images than another."""
    counts = {name: len(files) for name, files in zip(listing.classes, listing.files, strict=True)}
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] < UNEVEN * counts[least]:
        return []
    total = sum(counts.values())
    return [
        f"the classes are uneven: {counts[most]:,} training images of {most}, {counts[least]:,} of {least}; all "
        f"count alike, so always naming {most} is right in {counts[most] / total:.0%}: add images of the others, or "
        "remove some"
    ]
