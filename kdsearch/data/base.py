"""The data set types: whole tensors of bytes, a fixed split, and the conversion of bytes to a network's input."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdsearch.data.pictures import Scale
from kdsearch.data.stored import Images, Stored
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec

FLAT_RANGE = 16  # of 255: an image whose values lie closer together is nearly constant
FLAT_SAMPLE = 1_000  # images that are checked


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels.

    Attributes:
        images: (count, channels, height, width), uint8; a `Stored` file where they do not fit into memory.
        labels: (count,), int64.
    """

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageSet:
        """Return the images with these indices, in their order."""
        images = self.images.select(indices) if isinstance(self.images, Stored) else self.images[indices]
        return ImageSet(images, self.labels[indices])

    def joined(self, other: ImageSet) -> ImageSet:
        """Return these images followed by the others, on the same device."""
        labels = torch.cat([self.labels, other.labels])
        if isinstance(self.images, Stored):
            assert isinstance(other.images, Stored)
            return ImageSet(self.images.joined(other.images), labels)
        assert isinstance(other.images, Tensor)
        return ImageSet(torch.cat([self.images, other.images]), labels)

    def to(self, device: torch.device) -> ImageSet:
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A whole data set as published.

    Attributes:
        name: as in the study file.
        classes: names of the classes, in the order of their labels.
        train, test: the published parts.
        top: the byte value that stands for 1.0.
        mean, std: of the normalisation after that, the same in every channel.
        notes: warnings to show at the start of a study.
        validation: the published validation part; None: a share of `train` is drawn instead.
        summary: a line on what was read, or empty.
        scale: scale of image files of more than 8 bits; None: the images are not from the user's image files.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    top: float = 255.0
    mean: float = 0.0
    std: float = 1.0
    notes: tuple[str, ...] = ()
    validation: ImageSet | None = None
    summary: str = ""
    scale: Scale | None = None


def check(dataset: object, name: str) -> None:
    """Refuse an invalid data set of another package.

    Raises:
        DataError: it is no `Dataset`, or its images or labels are not as `ImageSet` specifies.
    """
    for rule, holds in _rules(dataset):
        if not holds:
            raise DataError(
                f"the data set {name} must return {rule}",
                got=type(dataset).__name__,
                remedy="fix or uninstall the package that brings it",
            )


def _rules(dataset: object) -> Iterator[tuple[str, bool]]:
    yield "a Dataset", isinstance(dataset, Dataset)
    assert isinstance(dataset, Dataset)
    yield "the names of at least two classes", len(dataset.classes) > 1
    parts = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    for name, part in ((name, part) for name, part in parts.items() if part is not None):
        images, labels = part.images, part.labels
        of_bytes = (images.dtype, images.ndim) == (torch.uint8, 4)
        yield f"{name} images of bytes, (count, channels, height, width)", of_bytes
        yield f"an int64 label for each {name} image", (labels.dtype, labels.shape) == (torch.int64, images.shape[:1])
        yield f"{name} images", len(labels) > 0
        low, high = int(labels.min()), int(labels.max())
        yield f"{name} labels from 0 to {len(dataset.classes) - 1}", 0 <= low <= high < len(dataset.classes)
        yield f"{name} images of the training images' size", dataset.train.images.shape[1:] == images.shape[1:]


def flatness(dataset: Dataset) -> Iterator[str]:
    """Yield a warning where most training images are nearly constant: a sign of a wrong scale or decoder."""
    images = dataset.train.images
    shown = images[torch.linspace(0, len(images) - 1, min(len(images), FLAT_SAMPLE)).long()].flatten(2)
    top = min(dataset.top, 255.0)
    spread = shown.amax(2).int() - shown.amin(2).int()  # within a channel: an image of one colour is constant, too
    flat = int((spread.amax(1) < FLAT_RANGE * top / 255).sum())
    if 2 * flat > len(shown):
        yield (
            f"{flat:,} of {len(shown):,} training images are nearly constant (their values lie within "
            f"{FLAT_RANGE / 255:.0%} of the range): see that the files show what they should"
        )


@dataclass(frozen=True)
class Split:
    """A data set on its device, split for a study.

    Attributes:
        train: teacher and students are trained on it.
        validation: the only part that the search uses.
        test: scored once a trial; decides nothing.
        fingerprint: hash of the pixels and labels of all three.
        notes, summary, scale: as in `Dataset`.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    top: float
    mean: float
    std: float
    fingerprint: str
    notes: tuple[str, ...] = ()
    summary: str = ""
    scale: Scale | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return int(channels), int(height), int(width)

    def undivided(self) -> Split:
        """Return the same data with the validation images appended to the training images.

        The fingerprint stays: the images are the same, and what is cached for them has their own fingerprint.
        """
        nobody = self.validation.subset(self.validation.labels.new_empty(0))
        return dataclasses.replace(self, train=self.train.joined(self.validation), validation=nobody)

    def prepare(self, images: Tensor) -> Tensor:
        """Convert images of bytes, uint8, to a network's input, float32, of the same shape."""
        scaled = images.to(torch.float32).mul_(1.0 / (self.top * self.std))
        return scaled.sub_(self.mean / self.std) if self.mean else scaled

    def example(self, batch: int) -> Tensor:
        """Return a batch of validation images as a network's input, repeated where there are too few."""
        return self.prepare(repeated(self.validation.images, batch))


def repeated(images: Images, count: int) -> Tensor:
    """Return the first `count` images, repeated from the beginning where there are too few."""
    return images[torch.arange(count, device=images.device) % len(images)]


def stratified(labels: Tensor, count: int, seed: int, what: str, classes: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
    """Return indices of a stratified draw of `count`, and of the rest, both ascending, with every class in both.

    Args:
        labels: (images,), int64, on the CPU.
        count: images to draw; every class needs one in the draw and one in the rest.
        seed: of the draw.
        what: name of the draw in an error.
        classes: their names, for an error; empty: they are numbered.

    Raises:
        DataError: one of the two would lack a class.
    """
    from sklearn.model_selection import train_test_split

    _check_draw(labels, count, what, classes)
    everything = torch.arange(len(labels)).numpy()
    parts = train_test_split(everything, train_size=count, random_state=seed, stratify=labels.numpy())
    drawn, rest = (torch.from_numpy(part) for part in parts)
    drawn, rest = _with_every_class(labels, drawn, rest)
    rest, drawn = _with_every_class(labels, rest, drawn)
    return drawn.sort().values, rest.sort().values


def _check_draw(labels: Tensor, count: int, what: str, classes: Sequence[str]) -> None:
    """Refuse a draw that must leave a class out: of too few images or too many, or where a class has a single one."""
    counts = labels.bincount()
    there = counts.nonzero().flatten().tolist()
    single = [str(classes[label] if classes else label) for label in there if counts[label] == 1]
    rule = f"{what} must hold at least one image of every class"
    if single:
        raise DataError(
            f"{rule}, and leave one: a class needs 2",
            got=f"1 of class {', '.join(single[:3])}{', ...' * (len(single) > 3)}",
            remedy="add images of it, or raise train_size",
        )
    if not len(there) <= count <= len(labels) - len(there):
        raise DataError(
            f"{rule}, and leave one: from {len(there)} to {len(labels) - len(there)} images",
            got=f"{count} of {len(labels)}",
            remedy="use more images, or another share (`validation` or `test` in the study file, or --train-size)",
        )


def _with_every_class(labels: Tensor, part: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange images between two parts until the first one holds every class; their sizes stay.

    A stratified draw rounds the share of a class with few images down to none.
    """
    part, other = part.clone(), other.clone()
    for label in labels.unique().tolist():
        if (labels[part] == label).any():
            continue
        given = int((labels[part] == labels[part].bincount().argmax()).nonzero()[-1])
        taken = int((labels[other] == label).nonzero()[0])
        part[given], other[taken] = other[taken].clone(), part[given].clone()
    return part, other


def split(dataset: Dataset, spec: DataSpec, device: torch.device) -> Split:
    """Split the training set into training and validation images, stratified, by the study's seed.

    With `train_size`, at most that many training images are drawn, and at most as many validation images; the test set
    stays whole. A data set that was published with validation images keeps them.

    Raises:
        DataError: a part would lack a class.
    """
    labels, names = dataset.train.labels, dataset.classes
    if dataset.validation is None:
        count = round(len(labels) * spec.validation)
        held, rest = stratified(labels, count, spec.split_seed, "the validation set", names)
        validation = dataset.train.subset(held)
    else:
        rest, validation = torch.arange(len(labels)), dataset.validation
    if spec.train_size is not None and spec.train_size < len(rest):
        chosen, _ = stratified(labels[rest], spec.train_size, spec.split_seed, "the training set", names)
        rest = rest[chosen]
        if spec.train_size < len(validation):
            seen = validation.labels
            chosen, _ = stratified(seen, spec.train_size, spec.split_seed, "the validation set", names)
            validation = validation.subset(chosen)
    return _on_device(dataset, [dataset.train.subset(rest), validation, dataset.test], device)


def whole(dataset: Dataset, device: torch.device, *, train_size: int | None = None) -> Split:
    """Return the data set without validation images: the whole training set, or `train_size` of it by class (seed 0).

    Raises:
        DataError: the draw would lack a class.
    """
    train = dataset.train if dataset.validation is None else dataset.train.joined(dataset.validation)
    if train_size is not None and train_size < len(train):
        chosen, _ = stratified(train.labels, train_size, 0, "the training set", dataset.classes)
        train = train.subset(chosen)
    return _on_device(dataset, [train, dataset.train.subset(torch.arange(0)), dataset.test], device)


def _on_device(dataset: Dataset, parts: list[ImageSet], device: torch.device) -> Split:
    train, validation, test = (part.to(device) for part in parts)
    given = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(Dataset)}
    changed = {"train": train, "validation": validation, "test": test, "fingerprint": fingerprint(parts)}
    return Split(**given | changed)


def fingerprint(parts: list[ImageSet]) -> str:
    """Return a hash of pixels, labels and shapes, 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(repr(tuple(part.images.shape)).encode())
        for images in part.images.split(256):  # at a time, for memory
            digest.update(images.cpu().contiguous().numpy().data)
        digest.update(part.labels.cpu().contiguous().numpy().data)
    return digest.hexdigest()
