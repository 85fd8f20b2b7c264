"""List a folder of images without decoding any: its parts, classes and files, and the files that are skipped."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from kdsearch.data import pictures
from kdsearch.errors import DataError

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
PARTS = {  # folder names of each part, in any case
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SYSTEM = {  # names that operating systems and tools leave in folders; those that begin with a dot are hidden anyway
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
    "desktop.ini", "__pycache__",
}  # fmt: skip
HIDDEN, NO_IMAGE, NOTHING, OUTSIDE, BESIDE = (
    "hidden", "no image that Pillow reads", "a link to nothing", "in no class folder", "in no part that is used",
)  # fmt: skip
SHOWN = 3  # names in a line


@dataclass(frozen=True)
class Listing:
    """The image files of class folders.

    Attributes:
        classes: their names in Unicode's form NFC, in order.
        files: of each class, in order.
        skipped: entries that are not used, each with the reason.
    """

    classes: tuple[str, ...]
    files: tuple[list[Path], ...]
    skipped: tuple[tuple[Path, str], ...] = ()

    @property
    def paths(self) -> list[Path]:
        """All files, class by class."""
        return list(chain.from_iterable(self.files))

    @property
    def labels(self) -> torch.Tensor:
        """The labels of `paths`, (files,), int64."""
        labels = [label for label, files in enumerate(self.files) for _ in files]
        return torch.tensor(labels, dtype=torch.int64)


@dataclass(frozen=True)
class Layout:
    """The parts of a folder of images.

    Attributes:
        root: the folder.
        train, validation, test: listings of the parts; None: the part does not exist.
        skipped: entries beside the parts and in them that are not used, each with the reason.
    """

    root: Path
    train: Listing
    validation: Listing | None
    test: Listing | None
    skipped: tuple[tuple[Path, str], ...]

    @property
    def parts(self) -> list[Listing]:
        """The existing parts: training, validation, test."""
        return [part for part in (self.train, self.validation, self.test) if part is not None]

    def summary(self) -> str:
        """Count the images of each part and what was skipped, by reason, in one line."""
        counts = " and ".join(
            f"{len(part.paths):,} {name} images"
            for name, part in (("training", self.train), ("validation", self.validation), ("test", self.test))
            if part is not None
        )
        skipped = "; ".join(_reasons(self.skipped)) or "nothing"
        return f"{self.root} holds {counts} of {len(self.train.classes)} classes; skipped: {skipped}"


def _reasons(skipped: Sequence[tuple[Path, str]]) -> Iterator[str]:
    """Describe what was skipped for each reason: "3 hidden (._1.png, ...)"."""
    for reason in (HIDDEN, NO_IMAGE, NOTHING, OUTSIDE, BESIDE):
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
    """Return the entries of a folder, ordered by canonical name.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: (canonical(entry.name), entry.name))
    except OSError as error:
        raise DataError(
            f"a folder of images must be readable: {error.strerror}", got=folder, remedy="correct its permissions"
        ) from None


def _walk(folder: Path, seen: frozenset[Path], skipped: list[tuple[Path, str]]) -> Iterator[Path]:
    """Yield the image files of a class folder and its subfolders, following links but no cycles.

    Args:
        folder: of a class, or below one.
        seen: the real paths of the folders above.
        skipped: entries that are not used are appended.
    """
    real = Path(os.path.realpath(folder))
    if real in seen:
        return
    for entry in _entries(folder):
        path = folder / entry.name
        if _is_hidden(entry.name):
            skipped.append((path, HIDDEN))
        elif entry.is_dir():
            yield from _walk(path, seen | {real}, skipped)
        elif not path.exists():
            skipped.append((path, NOTHING))
        elif entry.is_file() and (path.suffix.lower() in ENDINGS or pictures.is_image(path)):
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
    skipped: list[tuple[Path, str]] = []
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
    files = tuple([f for folder in same for f in _walk(folder, frozenset(), skipped)] for same in folders.values())
    for (folder, *_), images in zip(folders.values(), files, strict=True):
        if not images:
            why = "; ".join(_reasons([entry for entry in skipped if folder in entry[0].parents]))
            got = f"{folder}: {why}" if why else folder
            raise DataError("a class folder must hold images", got=got, remedy="add images or remove the folder")
    return Listing(tuple(folders), files, tuple(skipped))


def list_folder(root: Path) -> Layout:
    """List the parts of a folder of images: PATH/train, and PATH/val and PATH/test where they exist.

    In a folder without any of these, the class folders of the training images are directly in PATH.

    Raises:
        DataError: training images are missing, `list_classes` refuses a part, or the parts differ in their classes.
    """
    folders, beside = _parts(root)
    train = list_classes(folders["train"])
    validation = list_classes(folders["validation"]) if "validation" in folders else None
    test = list_classes(folders["test"]) if "test" in folders else None
    for name, part in (("validation", validation), ("test", test)):
        if part is not None:
            _check_alike(train.classes, part.classes, name)
    inside = chain.from_iterable(part.skipped for part in (train, validation, test) if part is not None)
    return Layout(root, train, validation, test, (*beside, *inside))


def _parts(root: Path) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """Return the folders of the parts by name, and what is beside them.

    Raises:
        DataError: a part exists twice, or there are no training images.
    """
    if not root.is_dir():
        return {"train": root}, []  # `list_classes` reports the error
    folders: dict[str, Path] = {}
    beside: list[tuple[Path, str]] = []
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


def _check_alike(train: tuple[str, ...], other: tuple[str, ...], part: str) -> None:
    """Refuse a part whose classes differ from the training images'.

    Raises:
        DataError: the classes differ; the message names those that only one of the parts has.
    """
    ours, theirs = (", ".join(sorted(one - two)) for one, two in ((set(train), set(other)), (set(other), set(train))))
    if not ours and not theirs:
        return
    got = "; ".join(f"{names} in {where} only" for names, where in ((ours, "train"), (theirs, part)) if names)
    cased = {name.casefold() for name in train} == {name.casefold() for name in other}
    raise DataError(
        f"train and {part} must have the same classes",
        got=got,
        remedy="write them in the same case" if cased else "add or remove these folders",
    )
