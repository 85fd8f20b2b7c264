"""Images in class folders: PATH/train/CLASS and, where they are there, PATH/val/CLASS and PATH/test/CLASS."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, repeat
from pathlib import Path

import torch

from kdsearch.data import pictures, stored
from kdsearch.data.base import Dataset, ImageSet, stratified
from kdsearch.data.listing import PARTS, Layout, Listing, list_classes, list_folder
from kdsearch.data.stored import Images, Stored
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec
from kdsearch.system import files, machine

DEFAULT_SIZE = 32
TEST_SHARE = 0.2  # of a folder without test images, by class
TEST_SEED = 0  # not the study's: the test images are the same for every study of a folder
COPIES = 2  # of the images in memory, while they are split
SHARE = 0.5  # of the free memory that they may take: training needs the rest
DECODER = 1  # counted up where images are decoded otherwise than before
UNEVEN = 2  # times as many images of one class as of another are worth a line
NUMBERS_SHOWN = 4
FOREIGN = {  # endings of pictures that Pillow does not read by itself
    ".heic", ".heif", ".jxl", ".svg", ".pdf", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
    ".dcm", ".exr", ".hdr", ".npy", ".mat", ".eps",
}  # fmt: skip
NAMED = 3  # unreadable images in an error


def fits(count: int, size: int, free: int | None) -> bool:
    """Whether images fit into memory, with as much again for training.

    Args:
        count: of the images.
        size: their height and width.
        free: bytes; None: unknown.
    """
    return free is None or COPIES * count * 3 * size**2 <= free * SHARE


def decoded(paths: Sequence[Path], size: int | None, scale: pictures.Scale = pictures.FULL) -> Iterator[pictures.Bytes]:
    """Decode image files, in their order.

    Args:
        paths: at least one.
        size: pixels to resize height and width to; None: all images must have one size.
        scale: of images of more than 8 bits (`pictures.scale_of` of the whole set).

    Yields:
        (3, height, width), uint8, of each file.

    Raises:
        DataError: unreadable images, all counted and the first named, or mixed sizes: after the last file.
    """
    broken: list[str] = []
    sizes: set[tuple[int, ...]] = set()
    with pictures.quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:  # decoders release the interpreter's lock
        for index, image in enumerate(pool.map(pictures.read, paths, repeat(size), repeat(scale))):
            if isinstance(image, str):
                broken.append(f"{image}: {paths[index]}")
                continue
            sizes.add(image.shape)
            if not broken and len(sizes) == 1:
                yield image.transpose(2, 0, 1)
    if broken:
        more = "; ..." if len(broken) > NAMED else ""
        raise DataError(
            f"an image must be readable, and {len(broken)} of {len(paths):,} are not",
            got="; ".join(broken[:NAMED]) + more,
            remedy="replace or remove it" if len(broken) == 1 else "replace or remove them",
        )
    if len(sizes) > 1:
        raise DataError(
            "images must have one size", got=f"{len(sizes)} sizes in {paths[0].parent}", remedy="resize them"
        )


def read_files(paths: Sequence[Path], size: int | None, scale: pictures.Scale = pictures.FULL) -> torch.Tensor:
    """Decode image files into memory.

    Args:
        paths, size, scale: as of `decoded`.

    Returns:
        (files, 3, height, width), uint8.

    Raises:
        DataError: as of `decoded`.
    """
    images: torch.Tensor | None = None
    for index, image in enumerate(decoded(paths, size, scale)):
        if images is None:
            images = torch.empty(len(paths), *image.shape, dtype=torch.uint8)
        images[index] = torch.from_numpy(image.copy())
    assert images is not None
    return images


def store_files(root: Path, paths: Sequence[Path], size: int, scale: pictures.Scale) -> Stored:
    """Decode image files once into a file of the cache, whole or not at all, and leave them there.

    The file is found again by the images' paths below `root`, their sizes and their times; where these changed, it
    replaces the one before. It does not count to what `kdsearch.data.decoded` bounds: a study cannot run without it.

    Args:
        root: of the folder of images, which may move.
        paths, size, scale: as of `decoded`.

    Raises:
        DataError: as of `decoded`, or the disk has no room.
        KdsearchError: the cache cannot be written.
    """
    folder = machine.cache_folder() / "decoded" / "large"
    name = f"{hashlib.blake2b(str(root.absolute()).encode(), digest_size=4).hexdigest()}-{size}"
    path = folder / f"{name}-{_key(root, paths, size, scale)}.safetensors"
    shape = len(paths), 3, size, size
    with files.locked(path):
        kept = stored.find(path)
        if kept is None or kept.shape != shape:
            stored.forget(folder, name, path)  # of this folder of images before it changed
            stored.check_disk(path, shape)
            kept = stored.write(path, shape, lambda: decoded(paths, size, scale), {"images_of": str(root)})
    return Stored(kept)


def _key(root: Path, paths: Sequence[Path], size: int, scale: pictures.Scale) -> str:
    """Hash of which files there are and how they are decoded, 16 hexadecimal digits."""
    digest = hashlib.blake2b(repr((DECODER, machine.package_version("pillow"), size, scale)).encode(), digest_size=8)
    for path in paths:
        at = path.stat()
        digest.update(repr((str(path.relative_to(root)), at.st_size, at.st_mtime_ns)).encode())
    return digest.hexdigest()


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
        DataError: no path, `list_folder`, `pictures.scale_of`, `read_files` or `store_files` refuses, or a class has
            too few images for every part to hold one.
    """
    layout = list_folder(locate(spec, folder))
    size = spec.image_size or DEFAULT_SIZE
    _check_counts(layout)
    paths = [path for part in layout.parts for path in part.paths]
    scale, notes = pictures.scale_of(paths)
    if fits(len(paths), size, machine.free_memory()):
        images: Images = read_files(paths, size, scale)
    else:
        images = store_files(layout.root, paths, size, scale)
        notes.append(
            f"{len(paths):,} images of {size}x{size} do not fit into memory: they are read from {images.file.path}"
        )
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
