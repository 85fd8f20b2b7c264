"""Images in class folders: PATH/train/CLASS and, where they are there, PATH/val/CLASS and PATH/test/CLASS."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, repeat
from pathlib import Path

import torch

from kdsearch.data import pictures
from kdsearch.data.base import Dataset, ImageSet, stratified
from kdsearch.data.listing import PARTS, Layout, Listing, list_classes, list_folder
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec
from kdsearch.system import machine

DEFAULT_SIZE = 32
TEST_SHARE = 0.2  # of a folder without test images, by class
TEST_SEED = 0  # not the study's: the test images are the same for every study of a folder
COPIES = 2  # of the images in memory, while they are split
UNEVEN = 2  # times as many images of one class as of another are worth a line
NUMBERS_SHOWN = 4
FOREIGN = {  # endings of pictures that Pillow does not read by itself
    ".heic", ".heif", ".jxl", ".svg", ".pdf", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
    ".dcm", ".exr", ".hdr", ".npy", ".mat", ".eps",
}  # fmt: skip
NAMED = 3  # unreadable images in an error


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


def read_files(paths: Sequence[Path], size: int | None, scale: pictures.Scale = pictures.FULL) -> torch.Tensor:
    """Reads image files.

    Args:
        paths: at least one.
        size: pixels to resize height and width to; None: all images must have one size.
        scale: of images of more than 8 bits (`pictures.scale_of` of the whole set).

    Returns:
        (files, 3, height, width), uint8.

    Raises:
        DataError: unreadable images, all counted and the first named, or mixed sizes.
    """
    images: torch.Tensor | None = None
    broken: list[str] = []
    odd: set[tuple[int, ...]] = set()
    with pictures.quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the interpreter's lock
        for index, found in enumerate(pool.map(pictures.read, paths, repeat(size), repeat(scale))):
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


def locate(spec: DataSpec, folder: Path) -> Path:
    """Where the images of `folder:PATH` lie: PATH is a hint, and the data folder may say otherwise.

    A data folder that is named (--data-dir) comes first: it holds PATH, or is the folder of images itself. Else PATH
    comes first. Whether the images are a study's own is told by their fingerprint.

    Args:
        spec: `[data]` of a study.
        folder: where data sets lie.

    Raises:
        DataError: no path is given.
    """
    _, _, text = spec.name.partition(":")
    if not text:
        raise DataError("a folder of images needs its path", got=spec.name, remedy="give --dataset folder:PATH")
    path = Path(text).expanduser()
    below = [folder / path.name] if path.is_absolute() else [folder / path, folder / path.name]
    itself = [folder] if _has_train(folder) else []
    named = folder != machine.data_folder(None)
    candidates = [*below, *itself, path] if named else [path, *below, *itself]
    return next((candidate for candidate in candidates if candidate.is_dir()), path)


def _has_train(folder: Path) -> bool:
    return folder.is_dir() and any(name.lower() in PARTS["train"] for name in os.listdir(folder))


def load(spec: DataSpec, folder: Path) -> Dataset:
    """The class folders that `folder:PATH` names, resized to the study's `image_size` (32 without one).

    Where PATH has no test folder, a share of the training images becomes the test set: by class, the same each time.

    Raises:
        DataError: no path, `list_folder`, `check_memory`, `pictures.scale_of` or `read_files` refuses, or a class has
            too few images for every part to hold one.
    """
    layout = list_folder(locate(spec, folder))
    size = spec.image_size or DEFAULT_SIZE
    _check_counts(layout)
    paths = [path for part in layout.parts for path in part.paths]
    check_memory(len(paths), size, machine.free_memory())
    scale, notes = pictures.scale_of(paths)
    images = read_files(paths, size, scale)
    every = ImageSet(images, torch.cat([part.labels for part in layout.parts]))
    ends = torch.tensor([0, *(len(part.paths) for part in layout.parts)]).cumsum(0).tolist()
    parts = [every.subset(torch.arange(start, end)) for start, end in pairwise(ends)]
    notes += [
        *_unevenness(layout.train),
        *_look_alikes(layout.train.classes),
        *_unreadable(layout),
        *_numbers(layout.train.classes),
    ]
    train, test = parts[0], parts[-1]
    if layout.test is None:
        train, test, note = _held_out(train, layout, spec.test or TEST_SHARE)
        notes.append(note)
    return Dataset(
        name=spec.name, classes=layout.train.classes, train=train, test=test, mean=0.5, std=0.5, notes=tuple(notes),
        validation=None if layout.validation is None else parts[1], summary=layout.summary(), scale=scale,
    )  # fmt: skip


def _check_counts(layout: Layout) -> None:
    """Refuse classes with too few images for every part to hold one of them.

    Raises:
        DataError: the line names the classes and how many images each needs.
    """
    drawn = [name for name, part in (("validation", layout.validation), ("test", layout.test)) if part is None]
    needed = 1 + len(drawn)
    counts = {name: len(files) for name, files in zip(layout.train.classes, layout.train.files, strict=True)}
    scarce = [f"{name} has {count}" for name, count in counts.items() if count < needed]
    if scarce:
        raise DataError(
            f"a class needs at least {needed} training images, one each for {' and '.join(['training', *drawn])}",
            got=", ".join(scarce[:NAMED]) + ", ..." * (len(scarce) > NAMED),
            remedy="add images of it, or remove its folder",
        )


def _held_out(whole: ImageSet, layout: Layout, share: float) -> tuple[ImageSet, ImageSet, str]:
    """Training and test images of a folder that has no test images, and a line that says so."""
    count = round(len(whole) * share)
    test, rest = stratified(whole.labels, count, TEST_SEED, "the test set", layout.train.classes)
    return (
        whole.subset(rest),
        whole.subset(test),
        f"{layout.root} has no test folder: {count:,} of its {len(whole):,} images, by class, are the test set "
        f"([data] test = {share:g})",
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


def _look_alikes(classes: Sequence[str]) -> list[str]:
    """A line for classes whose names differ in case only, which file systems of macOS and Windows take for one."""
    names: dict[str, list[str]] = {}
    for name in classes:
        names.setdefault(name.casefold(), []).append(name)
    alike = [" and ".join(same) for same in names.values() if len(same) > 1]
    return (
        [f"classes differ in case only: {', '.join(alike)}; if they are one, put them in one folder"] if alike else []
    )


def _numbers(classes: Sequence[str]) -> list[str]:
    """A line for classes that are numbers, of which another program's network may have the outputs in their order."""
    if not all(name.isdecimal() for name in classes) or list(classes) == sorted(classes, key=int):
        return []
    shown = ", ".join(classes[:NUMBERS_SHOWN])
    return [
        f"the classes are numbers in the order of text ({shown}, ...), as torchvision's ImageFolder has them: see that "
        "a teacher of yours has its outputs in this order, or name them 00, 01, ..."
    ]


def _unreadable(layout: Layout) -> list[str]:
    """A line for skipped files that are pictures in a format that Pillow does not read."""
    skipped = Counter(path.suffix.lower() for path, _ in layout.skipped if path.suffix.lower() in FOREIGN)
    if not skipped:
        return []
    counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(skipped.items()))
    return [f"pictures were skipped that Pillow does not read ({counts}): convert them to JPEG or PNG to use them"]
