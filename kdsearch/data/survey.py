"""Survey the images of a folder: sizes, modes, unreadable files and duplicates."""

from __future__ import annotations

import hashlib
import os
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kdsearch.data import pictures
from kdsearch.data.listing import Layout, Listing

LOOKED_AT = 2_000  # files, evenly over the set, where a sample is enough


@dataclass(frozen=True)
class Looked:
    """Facts on one image file.

    Attributes:
        path: of the file.
        size: width and height in pixels, turned upright; None: unreadable.
        mode: Pillow's mode of the file.
        digest: of its size and pixels in colour; empty where only its head was read.
        reason: why it cannot be read; empty where it can.
    """

    path: Path
    size: tuple[int, int] | None
    mode: str = ""
    digest: str = ""
    reason: str = ""


def heads(paths: Sequence[Path]) -> list[Looked]:
    """Read sizes and modes of a sample of files, evenly over all of them, from their heads, without decoding."""
    step = max(1, len(paths) // LOOKED_AT)
    with pictures.quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_head, paths[::step]))


def _head(path: Path) -> Looked:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=pictures.formats()) as image:
            return Looked(path, image.size, image.mode)
    except UnidentifiedImageError:
        return Looked(path, None, reason=pictures.what_it_is(path))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Looked(path, None, reason=pictures.reason(error))


def look(paths: Sequence[Path], scale: pictures.Scale) -> list[Looked]:
    """Decode every file as a study would and return its facts.

    Args:
        paths: of the files.
        scale: of images of more than 8 bits.
    """

    def one(path: Path) -> Looked:
        head = _head(path)
        image = pictures.read(path, None, scale) if not head.reason else head.reason
        if isinstance(image, str):
            return Looked(path, None, reason=image)
        height, width, _ = image.shape
        digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
        digest.update(image.tobytes())
        return Looked(path, (width, height), head.mode, digest.hexdigest())

    with pictures.quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, paths))


def shorter_side(looked: Sequence[Looked]) -> int | None:
    """Return the median of the images' shorter sides, in pixels; None where none can be read."""
    sides = [min(each.size) for each in looked if each.size is not None]
    return int(statistics.median(sides)) if sides else None


def sizes_in_words(looked: Sequence[Looked]) -> str:
    """Describe the one size, or the smallest, the most common and the largest (by area)."""
    counts = Counter(each.size for each in looked if each.size is not None)
    if not counts:
        return "none can be read"
    order = sorted(counts, key=lambda size: (size[0] * size[1], size))
    common, times = counts.most_common(1)[0]
    if len(counts) == 1:
        return f"all {_by(common)}"
    return (
        f"{_by(order[0])} to {_by(order[-1])} pixels; {_by(common)} in {times / counts.total():.0%}; "
        f"median shorter side {shorter_side(looked)}"
    )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def modes_in_words(looked: Sequence[Looked]) -> str:
    """Describe how many files have which of Pillow's modes, and how these are converted."""
    counts = Counter(each.mode for each in looked if each.size is not None)
    words = [
        f"{count:,} {mode}" + (f" ({_becomes(mode)})" if mode != "RGB" else "") for mode, count in counts.most_common()
    ]
    return ", ".join(words) or "none can be read"


def _becomes(mode: str) -> str:
    if pictures.is_deep(mode):
        return "scaled to 8 bits"
    return {"L": "grey becomes colour", "RGBA": "laid on white", "LA": "laid on white"}.get(mode, "becomes RGB")


@dataclass(frozen=True)
class Twins:
    """Groups of images with identical pixels.

    Attributes:
        across: groups with an image in the training set and one in another part.
        classes: groups of images of different classes, in any part.
        within: groups inside one part and class.
    """

    across: list[list[Path]]
    classes: list[list[Path]]
    within: list[list[Path]]


def twins(layout: Layout, looked: Sequence[Looked]) -> Twins:
    """Find duplicate images by their pixels.

    Args:
        layout: of the folder.
        looked: result of `look` for all files of its parts.
    """
    places = {path: (part, label) for part, label, path in _places(layout)}
    groups: dict[str, list[Path]] = {}
    for each in looked:
        if each.digest:
            groups.setdefault(each.digest, []).append(each.path)
    found = Twins([], [], [])
    for group in (group for group in groups.values() if len(group) > 1):
        parts, labels = ({places[path][index] for path in group} for index in (0, 1))
        if "train" in parts and len(parts) > 1:
            found.across.append(group)
        if len(labels) > 1:
            found.classes.append(group)
        if len(parts) == 1 and len(labels) == 1:
            found.within.append(group)
    return found


def _places(layout: Layout) -> Iterator[tuple[str, str, Path]]:
    parts: dict[str, Listing | None] = {
        "train": layout.train,
        "validation": layout.validation,
        "test": layout.test,
    }
    for name, part in parts.items():
        if part is not None:
            for label, paths in zip(part.classes, part.files, strict=True):
                yield from ((name, label, path) for path in paths)
