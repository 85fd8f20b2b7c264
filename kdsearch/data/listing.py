"""What is in a folder of images: its parts, classes and files, what is skipped, and what the images are like."""

from __future__ import annotations

import hashlib
import os
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from kdsearch.data import pictures
from kdsearch.errors import DataError

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
PART_LIKE = ("train", "val", "test", "eval", "unlabel")  # of no class: test1 of a competition holds unlabelled images
PARTS = {  # folder names of each part, in any case
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SYSTEM = {  # names that operating systems and tools leave in folders; those that begin with a dot are hidden anyway
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
    "desktop.ini", "__pycache__",
}  # fmt: skip
HIDDEN, NO_IMAGE, NOTHING, BACK, OUTSIDE, BESIDE = (
    "hidden", "no image that Pillow reads", "a link to nothing", "a link to a folder above or another class",
    "in no class folder", "in no part that is used",
)  # fmt: skip
SHOWN = 3  # names in a line
LOOKED_AT = 2_000  # files, evenly over the set, where a sample is enough

Skipped = tuple[Path, str]
"""An entry that is not used, and the reason."""


@dataclass(frozen=True)
class Listing:
    """The image files of class folders."""

    files: dict[str, list[Path]]  # of each class, by its name in Unicode's form NFC, both in order
    skipped: tuple[Skipped, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.files)

    @property
    def counts(self) -> dict[str, int]:
        return {name: len(paths) for name, paths in self.files.items()}

    @property
    def paths(self) -> list[Path]:
        """All files, class by class."""
        return list(chain.from_iterable(self.files.values()))

    @property
    def labels(self) -> torch.Tensor:
        """The labels of `paths`, (files,), int64."""
        return torch.arange(len(self.files)).repeat_interleave(torch.tensor([*self.counts.values()]))


@dataclass(frozen=True)
class Layout:
    """The parts of a folder of images."""

    root: Path
    parts: dict[str, Listing]  # "training" and, where they exist, "validation" and "test", in this order
    skipped: tuple[Skipped, ...]  # beside the parts and in them

    @property
    def train(self) -> Listing:
        return self.parts["training"]

    @property
    def paths(self) -> list[Path]:
        """All files, part by part."""
        return [path for part in self.parts.values() for path in part.paths]

    def summary(self) -> str:
        """Count the images of each part and what was skipped, by reason, in one line."""
        counts = " and ".join(f"{len(part.paths):,} {name} images" for name, part in self.parts.items())
        skipped = "; ".join(_reasons(self.skipped)) or "nothing"
        return f"{self.root} holds {counts} of {len(self.train.classes)} classes; skipped: {skipped}"


def _reasons(skipped: Sequence[Skipped]) -> Iterator[str]:
    """Describe what was skipped for each reason: "3 hidden (._1.png, ...)"."""
    for reason in (HIDDEN, NO_IMAGE, NOTHING, BACK, OUTSIDE, BESIDE):
        paths = [path for path, why in skipped if why == reason]
        if not paths:
            continue
        names = list(dict.fromkeys(path.suffix or path.name if reason == NO_IMAGE else path.name for path in paths))
        more = ", ..." if len(names) > SHOWN else ""
        yield f"{len(paths):,} {reason} ({', '.join(names[:SHOWN])}{more})"


def canonical(name: str) -> str:
    """Return a name in Unicode's form NFC: macOS and some archives decompose letters (NFD), which look the same."""
    return unicodedata.normalize("NFC", name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, ordered by canonical name."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: (canonical(entry.name), entry.name))
    except OSError as error:
        raise DataError(
            f"a folder of images must be readable: {error.strerror}", got=folder, remedy="correct its permissions"
        ) from None


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS or pictures.is_image(path)


def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))


def _walk(folder: Path, seen: frozenset[Path], skipped: list[Skipped]) -> Iterator[Path]:
    """Yield the image files of a class folder and its subfolders, following links but no cycles.

    Folders whose real path is in `seen`, those above and other classes', are not entered; entries that are not used are
    appended to `skipped`.
    """
    real = _real(folder)
    if real in seen:
        skipped.append((folder, BACK))
        return
    for entry in _entries(folder):
        path = folder / entry.name
        if _is_hidden(entry.name):
            skipped.append((path, HIDDEN))
        elif entry.is_dir():
            yield from _walk(path, seen | {real}, skipped)
        elif not path.exists():
            skipped.append((path, NOTHING))
        elif entry.is_file() and _is_picture(path):
            yield path
        else:
            skipped.append((path, NO_IMAGE))


def list_classes(root: Path) -> Listing:
    """List the class folders below `root`, ordered by name.

    Images in subfolders of a class count. A file is recognised by its suffix or, with another or none, by its content.

    Raises:
        DataError: the folder is missing or unreadable, has fewer than two classes, or a class is empty.
    """
    if not root.is_dir():
        raise DataError(
            "class folders must be there",
            got=root,
            remedy="lay images out as PATH/train/CLASS/ and PATH/test/CLASS/, or name their folder with --data-dir",
        )
    skipped: list[Skipped] = []
    folders: dict[str, list[Path]] = {}
    for entry in _entries(root):
        if _is_hidden(entry.name):
            skipped.append((root / entry.name, HIDDEN))
        elif entry.is_dir():
            folders.setdefault(canonical(entry.name), []).append(root / entry.name)
        else:
            skipped.append((root / entry.name, OUTSIDE))
    if len(folders) < 2:
        raise DataError(
            "there must be at least two classes, a folder each",
            got=f"{len(folders)} in {root}",
            remedy="add a folder for each class",
        )
    above = {_real(root), *_real(root).parents}
    places = {folder: _real(folder) for folder in chain.from_iterable(folders.values())}

    def images(folder: Path) -> Iterator[Path]:
        others = set(places.values()) - {places[folder]}  # a class folder may be a link to another one
        return _walk(folder, frozenset(above | others), skipped)

    files = {name: [*chain.from_iterable(map(images, same))] for name, same in folders.items()}
    for name, found in files.items():
        if not found:
            folder = folders[name][0]
            why = "; ".join(_reasons([entry for entry in skipped if folder in (entry[0], *entry[0].parents)]))
            got = f"{folder}: {why}" if why else folder
            raise DataError("a class folder must hold images", got=got, remedy="add images or remove the folder")
    return Listing(files, tuple(skipped))


def list_folder(root: Path) -> Layout:
    """List the parts of a folder of images: PATH/train, and PATH/val and PATH/test where they exist.

    In a folder without any of these, the class folders of the training images are directly in PATH.

    Raises:
        DataError: training images are missing, `list_classes` refuses a part, or the parts differ in their classes.
    """
    folders, beside = _parts(root)
    parts = {"training": list_classes(folders["train"])}
    parts |= {name: list_classes(folders[name]) for name in ("validation", "test") if name in folders}
    for name, part in parts.items():
        _check_alike(parts["training"].classes, part.classes, name)
    inside = chain.from_iterable(part.skipped for part in parts.values())
    return Layout(root, parts, (*beside, *inside))


def _parts(root: Path) -> tuple[dict[str, Path], list[Skipped]]:
    """Return the folders of the parts by name, and what is beside them.

    Raises:
        DataError: a part is there twice or train is missing, or train may be a class.
    """
    if not root.is_dir():
        return {"train": root}, []  # `list_classes` reports the error
    folders: dict[str, Path] = {}
    beside: list[Skipped] = []
    for entry in _entries(root):
        path = root / entry.name
        part = next((key for key, names in PARTS.items() if entry.name.lower() in names), None)
        if part is None or not entry.is_dir():
            beside.append((path, HIDDEN if _is_hidden(entry.name) else BESIDE))
        elif part in folders:
            raise DataError(
                f"a folder must have one folder of {part} images",
                got=f"{folders[part].name} and {path.name} in {root}",
                remedy="remove or rename one",
            )
        else:
            folders[part] = path
    if "train" in folders:
        _check_is_part(folders, [path for path, reason in beside if reason == BESIDE])
        return folders, beside
    if folders:
        raise DataError(
            "a folder of images must hold its training images",
            got=f"{', '.join(path.name for path in folders.values())} and no train in {root}",
            remedy="lay images out as PATH/train/CLASS/ and PATH/test/CLASS/",
        )
    for path in (path for path, reason in beside if reason == BESIDE and path.is_dir()):
        if any(inner.name.lower() == "train" and inner.is_dir() for inner in _entries(path)):
            raise DataError(
                "a folder of images must hold train itself", got=root, remedy=f"give --dataset folder:{path}"
            )
    return {"train": root}, []  # class folders: `list_classes` lists the entries


def _check_is_part(folders: dict[str, Path], beside: Sequence[Path]) -> None:
    """Refuse folders of images beside a train that stands alone or holds no folders: all may be classes."""
    train = folders["train"]
    if len(folders) > 1 and any(entry.is_dir() and not _is_hidden(entry.name) for entry in _entries(train)):
        return
    named = [path for path in beside if not path.name.lower().startswith(PART_LIKE)]
    alike = [path.name for path in named if path.is_dir() and _holds_pictures(path)]
    if alike:
        more = ", ..." if len(alike) > SHOWN else ""
        raise DataError(
            f"it must be clear whether {train.name} holds the training images or is one of the classes",
            got=f"folders of images beside it in {train.parent}: {', '.join(alike[:SHOWN])}{more}",
            remedy=f"if it is a class, rename it or move all classes below {train.parent / 'train'}; "
            "if not, move the others elsewhere",
        )


def _holds_pictures(folder: Path) -> bool:
    """Whether a folder itself, not one inside it, holds an image."""
    files = (folder / entry.name for entry in _entries(folder) if entry.is_file() and not _is_hidden(entry.name))
    return any(map(_is_picture, files))


def _check_alike(train: tuple[str, ...], other: tuple[str, ...], part: str) -> None:
    """Refuse a part whose classes differ from the training images'."""
    ours, theirs = (", ".join(sorted(one)) for one in ({*train} - {*other}, {*other} - {*train}))
    if not ours and not theirs:
        return
    got = "; ".join(f"{names} in {where} only" for names, where in ((ours, "train"), (theirs, part)) if names)
    cased = {*map(str.casefold, train)} == {*map(str.casefold, other)}
    raise DataError(
        f"train and {part} must have the same classes",
        got=got,
        remedy="write them in the same case" if cased else "add or remove these folders",
    )


@dataclass(frozen=True)
class Looked:
    """Facts on one image file."""

    path: Path
    size: tuple[int, int] | None  # width and height in pixels, of `look` turned upright; None: unreadable
    mode: str = ""  # Pillow's
    digest: str = ""  # of its size and pixels in colour; empty where only its head was read
    reason: str = ""  # why it cannot be read; empty where it can


def heads(paths: Sequence[Path]) -> list[Looked]:
    """Read sizes and modes of a sample of files, evenly over all of them, from their heads, without decoding."""
    return _mapped(_head, paths[:: max(1, len(paths) // LOOKED_AT)])


def _mapped(look_at: Callable[[Path], Looked], paths: Sequence[Path]) -> list[Looked]:
    with pictures.quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(look_at, paths))


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
    """Decode every file as a study would, with this scale of images of more than 8 bits."""

    def one(path: Path) -> Looked:
        head = _head(path)
        image = head.reason or pictures.read(path, None, scale)
        if isinstance(image, str):
            return Looked(path, None, reason=image)
        height, width, _ = image.shape
        digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
        digest.update(image.tobytes())
        return Looked(path, (width, height), head.mode, digest.hexdigest())

    return _mapped(one, paths)


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
        return "all {}x{}".format(*common)
    smallest, largest, usual = ("{}x{}".format(*size) for size in (order[0], order[-1], common))
    return (
        f"{smallest} to {largest} pixels; {usual} in {times / counts.total():.0%}; "
        f"median shorter side {shorter_side(looked)}"
    )


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


def twins(layout: Layout, looked: Sequence[Looked]) -> tuple[list[list[Path]], list[list[Path]], list[list[Path]]]:
    """Find groups of images with identical pixels in what `look` saw of all files of a folder.

    Returns:
        Groups with an image in the training set and one in another part, groups of images of different classes, in
        any part, and groups inside one part and class.
    """
    places = {
        path: (part, label)
        for part, listing in layout.parts.items()
        for label, paths in listing.files.items()
        for path in paths
    }
    groups: dict[str, list[Path]] = {}
    for each in looked:
        if each.digest:
            groups.setdefault(each.digest, []).append(each.path)
    across, classes, within = [], [], []
    for group in (group for group in groups.values() if len(group) > 1):
        parts, labels = map(set, zip(*(places[path] for path in group), strict=True))
        if "training" in parts and len(parts) > 1:
            across.append(group)
        if len(labels) > 1:
            classes.append(group)
        if len(parts) == 1 and len(labels) == 1:
            within.append(group)
    return across, classes, within
