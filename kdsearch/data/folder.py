"""Images in class folders: PATH/train/CLASS and, where they exist, PATH/val/CLASS and PATH/test/CLASS."""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from statistics import median

import torch

from kdsearch.data import decoded, pictures, stored
from kdsearch.data.base import Dataset, ImageSet, stratified
from kdsearch.data.listing import PARTS, Layout, list_classes, list_folder
from kdsearch.data.stored import Images, Stored
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec
from kdsearch.system import files, machine

DEFAULT_SIZE = 32
TEST_SHARE = 0.2  # of a folder without test images, by class
TEST_SEED = 0  # not the study's: the test images are the same for every study of a folder
COPIES = 2  # of the images in memory, while they are split
SHARE = 0.5  # of the free memory that the images may take: training needs the rest
DECODER = 1  # increase it when images are decoded differently
UNEVEN = 2  # ratio of the largest to the smallest class that is worth a warning
FOREIGN = {  # suffixes of pictures that Pillow cannot read by itself
    ".heic", ".heif", ".jxl", ".svg", ".pdf", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2",
    ".dcm", ".exr", ".hdr", ".npy", ".mat", ".eps",
}  # fmt: skip
NAMED = 3  # unreadable images in an error
PROBED = 32  # images that are decoded before threads are
SMALL = 1e-3  # seconds to decode an image, below which threads do not pay


def fits(count: int, size: int, free: int | None) -> bool:
    """Whether images, `size` pixels high and wide, fit into the free bytes of memory and leave enough for training."""
    return free is None or COPIES * count * 3 * size**2 <= free * SHARE


def read_files(paths: Sequence[Path], size: int | None, scale: pictures.Scale = pictures.FULL) -> torch.Tensor:
    """Read image files, decoded now or earlier (`decoded.load`); arguments and errors as in `decode_files`."""
    key = f"{size} {scale} {pictures.version()}"
    return decoded.load(paths, lambda: decode_files(paths, size, scale), key)


def decode_each(
    paths: Sequence[Path], size: int | None, scale: pictures.Scale = pictures.FULL
) -> Iterator[pictures.Bytes]:
    """Decode image files, in their order.

    Args:
        paths: at least one.
        size: pixels to resize height and width to; None: all images must have one size.
        scale: of images of more than 8 bits (`pictures.scale_of` of the whole set).

    Yields:
        (3, height, width), uint8, of each file.

    Raises:
        DataError: after the last file: images are unreadable (all counted, the first ones named), or sizes differ.
    """
    broken: list[str] = []
    sizes: set[tuple[int, ...]] = set()
    with pictures.quiet():
        for index, image in enumerate(_read_each(paths, size, scale)):
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


def _read_each(paths: Sequence[Path], size: int | None, scale: pictures.Scale) -> Iterator[pictures.Bytes | str]:
    """Yield `pictures.read` of each file: in threads, unless the first files show that images are small.

    Decoders release the interpreter's lock, but for images of 32x32 pixels threads wait for it longer than they decode:
    two of them take twice the time of one.
    """
    seconds = []
    for path in paths[:PROBED]:
        begin = time.perf_counter()
        image = pictures.read(path, size, scale)
        seconds.append(time.perf_counter() - begin)
        yield image
    if median(seconds) < SMALL:
        yield from (pictures.read(path, size, scale) for path in paths[PROBED:])
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(pictures.read, paths[PROBED:], repeat(size), repeat(scale))


def decode_files(paths: Sequence[Path], size: int | None, scale: pictures.Scale = pictures.FULL) -> torch.Tensor:
    """Decode image files into memory, (files, 3, height, width), uint8; arguments and errors as in `decode_each`."""
    images: torch.Tensor | None = None
    for index, image in enumerate(decode_each(paths, size, scale)):
        if images is None:
            images = torch.empty(len(paths), *image.shape, dtype=torch.uint8)
        images[index] = torch.from_numpy(image.copy())
    assert images is not None
    return images


def store_files(root: Path, paths: Sequence[Path], size: int, scale: pictures.Scale) -> Stored:
    """Decode image files once into a file of the cache, atomically.

    The file is found again by the images' paths below `root`, their sizes and their times; when these change, a new
    file replaces it. The bound of `kdsearch.data.decoded` does not apply to it: a study cannot run without it.

    Args:
        root: of the folder of images, which may move.
        paths, size, scale: as in `decode_each`.

    Raises:
        DataError: as in `decode_each`, or the disk has no room.
        KdsearchError: the cache cannot be written.
    """
    folder = machine.cache_folder() / "decoded" / "large"
    name = f"{hashlib.blake2b(str(root.absolute()).encode(), digest_size=4).hexdigest()}-{size}"
    path = folder / f"{name}-{_key(root, paths, size, scale)}.safetensors"
    shape = len(paths), 3, size, size
    with files.locked(path):
        kept = stored.find(path)
        if kept is None or kept.shape != shape:
            for older in folder.glob(f"{name}-*.safetensors"):  # of the same folder of images
                older.unlink(missing_ok=True)
            stored.check_disk(path, shape)
            kept = stored.write(path, shape, lambda: decode_each(paths, size, scale), {"images_of": str(root)})
    return Stored(kept)


def _key(root: Path, paths: Sequence[Path], size: int, scale: pictures.Scale) -> str:
    """Return a hash of the files and of how they are decoded, 16 hexadecimal digits."""
    digest = hashlib.blake2b(repr((DECODER, machine.package_version("pillow"), size, scale)).encode(), digest_size=8)
    for path in paths:
        at = path.stat()
        digest.update(repr((str(path.relative_to(root)), at.st_size, at.st_mtime_ns)).encode())
    return digest.hexdigest()


def read_classes(root: Path, *, size: int | None) -> tuple[tuple[str, ...], ImageSet]:
    """Read the class folders below `root`: the classes' names, and images of shape (count, 3, height, width).

    Raises:
        DataError: as in `list_classes` and `decode_each`.
    """
    listing = list_classes(root)
    return listing.classes, ImageSet(read_files(listing.paths, size), listing.labels)


def locate(spec: DataSpec, folder: Path) -> Path:
    """Return the folder of the images of `folder:PATH`; PATH is a hint that the data folder may override.

    A data folder that is named (--data-dir) comes first: it holds PATH, or is the folder of images itself. Otherwise
    PATH comes first. The fingerprint later verifies that the images are the study's own.

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
    """Load the class folders of `folder:PATH`, resized to the study's `image_size` (default 32).

    Without a test folder, a share of the training images becomes the test set: by class, the same each time.

    Raises:
        DataError: the path is missing; `list_folder`, `pictures.scale_of`, `read_files` or `store_files` fails; a class
            has too few images for every part to hold one.
    """
    layout = list_folder(locate(spec, folder))
    size = spec.image_size or DEFAULT_SIZE
    _check_counts(layout)
    paths = layout.paths
    scale, notes = pictures.scale_of(paths)
    if fits(len(paths), size, machine.free_memory()):
        images: Images = read_files(paths, size, scale)
    else:
        images = store_files(layout.root, paths, size, scale)
        notes.append(
            f"{len(paths):,} images of {size}x{size} do not fit into memory: they are read from {images.file.path}"
        )
    every = ImageSet(images, torch.cat([part.labels for part in layout.parts.values()]))
    rows = torch.arange(len(paths)).split([len(part.paths) for part in layout.parts.values()])
    parts = {name: every.subset(own) for name, own in zip(layout.parts, rows, strict=True)}
    classes = layout.train.classes
    notes += chain(_unevenness(layout.train.counts), _look_alikes(classes), _unreadable(layout), _numbers(classes))
    if "test" not in parts:
        parts["training"], parts["test"], note = _held_out(parts["training"], layout, spec.test or TEST_SHARE)
        notes.append(note)
    notes += _leaks(parts, spec.name)
    return Dataset(
        name=spec.name, classes=classes, train=parts["training"], test=parts["test"], mean=0.5, std=0.5,
        notes=tuple(notes), validation=parts.get("validation"), summary=layout.summary(), scale=scale,
    )  # fmt: skip


def _check_counts(layout: Layout) -> None:
    """Refuse classes with too few images for every part to hold one of them."""
    drawn = [name for name in ("validation", "test") if name not in layout.parts]
    needed = 1 + len(drawn)
    scarce = [f"{name} has {count}" for name, count in layout.train.counts.items() if count < needed]
    if scarce:
        raise DataError(
            f"a class needs at least {needed} training images, one each for {' and '.join(['training', *drawn])}",
            got=", ".join(scarce[:NAMED]) + ", ..." * (len(scarce) > NAMED),
            remedy="add images of it, or remove its folder",
        )


def _held_out(whole: ImageSet, layout: Layout, share: float) -> tuple[ImageSet, ImageSet, str]:
    """Split a folder without test images into training and test images; return also a line that says so."""
    count = round(len(whole) * share)
    test, rest = stratified(whole.labels, count, TEST_SEED, "the test set", layout.train.classes)
    note = (
        f"{layout.root} has no test folder: {count:,} of its {len(whole):,} images, by class, are the test set "
        f"([data] test = {share:g})"
    )
    return whole.subset(rest), whole.subset(test), note


def _leaks(parts: Mapping[str, ImageSet], name: str) -> Iterator[str]:
    """Warn of images of another part that the study, at its size, cannot tell from a training image."""
    known = set(_digests(parts["training"]))
    for part in sorted(set(parts) - {"training"}):
        count = sum(digest in known for digest in _digests(parts[part]))
        if count:
            yield (
                f"{count:,} of {len(parts[part]):,} {part} images equal a training image, which flatters what learnt "
                "it by heart: remove them from one part "
                f"(`kdsearch doctor --dataset {shlex.quote(name)}` names the files)"
            )


def _digests(part: ImageSet) -> Iterator[bytes]:
    for images in part.images.split(256):  # at a time, for memory
        for image in images.cpu().contiguous().numpy():
            yield hashlib.blake2b(image.data, digest_size=16).digest()


def _unevenness(counts: dict[str, int]) -> Iterator[str]:
    """Warn of classes of which one has many more images than another."""
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] >= UNEVEN * counts[least]:
        yield (
            f"the classes are uneven: {counts[most]:,} training images of {most}, {counts[least]:,} of {least}; all "
            f"count alike, so always naming {most} is right in {counts[most] / sum(counts.values()):.0%}: add images "
            "of the others, or remove some"
        )


def _look_alikes(classes: Sequence[str]) -> Iterator[str]:
    """Warn of classes whose names differ only in case, which the file systems of macOS and Windows treat as one."""
    names: dict[str, list[str]] = {}
    for name in classes:
        names.setdefault(name.casefold(), []).append(name)
    alike = [" and ".join(same) for same in names.values() if len(same) > 1]
    if alike:
        yield f"classes differ in case only: {', '.join(alike)}; if they are one, put them in one folder"


def _numbers(classes: Sequence[str]) -> Iterator[str]:
    """Warn of classes named by numbers: another program's network may have its outputs in numerical order."""
    if all(name.isdecimal() for name in classes) and list(classes) != sorted(classes, key=int):
        yield (
            f"the classes are numbers, in the order of text ({', '.join(classes[:4])}, ...), as torchvision's "
            "ImageFolder has them: see that a teacher of yours has its outputs in this order, or name them 00, 01, ..."
        )


def _unreadable(layout: Layout) -> Iterator[str]:
    """Warn of skipped pictures in formats that Pillow does not read."""
    skipped = Counter(path.suffix.lower() for path, _ in layout.skipped if path.suffix.lower() in FOREIGN)
    if skipped:
        counts = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(skipped.items()))
        yield f"pictures were skipped that Pillow does not read ({counts}): convert them to JPEG or PNG to use them"
