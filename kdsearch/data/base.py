"""What a data set is here: whole tensors of bytes, a fixed split, and how bytes become a network's input."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdsearch.errors import DataError
from kdsearch.spec import DataSpec


@dataclass(frozen=True)
class ImageSet:
    """Images and their labels.

    Attributes:
        images: (count, channels, height, width), uint8.
        labels: (count,), int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageSet:
        """The images with these indices, in their order."""
        return ImageSet(self.images[indices], self.labels[indices])

    def joined(self, other: ImageSet) -> ImageSet:
        """These images and then the others, on the same device."""
        return ImageSet(torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels]))

    def to(self, device: torch.device) -> ImageSet:
        """The same images on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A whole data set, as it was published.

    Attributes:
        name: as in the study file.
        classes: names of the classes, in the order of their labels.
        train, test: the published parts.
        top: the byte value that stands for 1.0.
        mean, std: subtracted and divided by after that, in every channel alike.
        notes: lines that whoever starts a study must not miss.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    top: float = 255.0
    mean: float = 0.0
    std: float = 1.0
    notes: tuple[str, ...] = ()


def check(dataset: object, name: str) -> None:
    """Refuses what another package's data set must not return.

    Raises:
        DataError: no `Dataset`, or its images or labels are not what `ImageSet` says.
    """
    for rule, holds in _rules(dataset):
        if not holds:
            raise DataError(
                f"the data set {name} must return {rule}",
                got=type(dataset).__name__,
                remedy="mend or uninstall the package that brings it",
            )


def _rules(dataset: object) -> Iterator[tuple[str, bool]]:
    yield "a Dataset", isinstance(dataset, Dataset)
    assert isinstance(dataset, Dataset)
    yield "the names of at least two classes", len(dataset.classes) > 1
    for name, part in (("train", dataset.train), ("test", dataset.test)):
        images, labels = part.images, part.labels
        yield (
            f"{name} images of bytes, (count, channels, height, width)",
            (images.dtype, images.ndim) == (torch.uint8, 4),
        )
        yield f"an int64 label for each {name} image", (labels.dtype, labels.shape) == (torch.int64, images.shape[:1])
        yield f"{name} images", len(labels) > 0
        low, high = int(labels.min()), int(labels.max())
        yield f"{name} labels from 0 to {len(dataset.classes) - 1}", 0 <= low <= high < len(dataset.classes)
    yield "test images of the training images' size", dataset.train.images.shape[1:] == dataset.test.images.shape[1:]


@dataclass(frozen=True)
class Split:
    """A data set on its device, split for a study.

    Attributes:
        train: what teacher and students are trained on.
        validation: what the search sees.
        test: scored once a trial; decides nothing.
        fingerprint: hash of the pixels and labels of all three.
        notes: as of the data set.
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return int(channels), int(height), int(width)

    def undivided(self) -> Split:
        """The same data with the validation images put behind the training images, and none left to validate on.

        Of the same fingerprint: the images are the same, and what is kept of them goes by their own.
        """
        nobody = self.validation.subset(self.validation.labels.new_empty(0))
        return dataclasses.replace(self, train=self.train.joined(self.validation), validation=nobody)

    def prepare(self, images: Tensor) -> Tensor:
        """A network's input, float32, from images of bytes, uint8; the shape stays."""
        scaled = images.to(torch.float32).mul_(1.0 / (self.top * self.std))
        return scaled.sub_(self.mean / self.std) if self.mean else scaled

    def example(self, batch: int) -> Tensor:
        """A batch of validation images as a network's input, repeated where there are too few."""
        return self.prepare(repeated(self.validation.images, batch))


def repeated(images: Tensor, count: int) -> Tensor:
    """The first `count` images, from the beginning again where there are too few."""
    return images[torch.arange(count, device=images.device) % len(images)]


def stratified(labels: Tensor, count: int, seed: int, what: str) -> tuple[Tensor, Tensor]:
    """Indices of a stratified draw of `count`, and of the rest, both ascending.

    Args:
        labels: (images,), int64, on the CPU.
        count: at least one of every class, and at least one of every class left.
        seed: of the draw.
        what: to call the draw in an error.

    Raises:
        DataError: a part would lack a class.
    """
    from sklearn.model_selection import train_test_split

    everything = torch.arange(len(labels)).numpy()
    try:
        drawn, rest = train_test_split(everything, train_size=count, random_state=seed, stratify=labels.numpy())
    except ValueError as error:
        raise DataError(
            f"{what} must hold at least one image of every class: {error}",
            got=f"{count} of {len(labels)} images",
            remedy="use more images, or another `validation` share in the study file",
        ) from None
    return torch.from_numpy(drawn).sort().values, torch.from_numpy(rest).sort().values


def split(dataset: Dataset, spec: DataSpec, device: torch.device) -> Split:
    """Splits the training set into training and validation images, stratified, by the study's seed.

    With `train_size`, at most that many of the training images are drawn, and no more validation images than that: the
    test set stays whole.

    Raises:
        DataError: a part would lack a class.
    """
    labels = dataset.train.labels
    held, rest = stratified(labels, round(len(labels) * spec.validation), spec.split_seed, "the validation set")
    if spec.train_size is not None and spec.train_size < len(rest):
        chosen, _ = stratified(labels[rest], spec.train_size, spec.split_seed, "the training set")
        rest = rest[chosen]
        if spec.train_size < len(held):
            chosen, _ = stratified(labels[held], spec.train_size, spec.split_seed, "the validation set")
            held = held[chosen]
    return _on_device(dataset, [dataset.train.subset(rest), dataset.train.subset(held), dataset.test], device)


def whole(dataset: Dataset, device: torch.device, *, train_size: int | None = None, seed: int = 0) -> Split:
    """The data set with nothing held back: no validation images, and the whole training set or a draw of it.

    Args:
        dataset: as published.
        device: where the images go.
        train_size: at most so many training images, drawn by class; None: all.
        seed: of the draw.

    Raises:
        DataError: the draw would lack a class.
    """
    train = dataset.train
    if train_size is not None and train_size < len(train):
        chosen, _ = stratified(train.labels, train_size, seed, "the training set")
        train = train.subset(chosen)
    return _on_device(dataset, [train, dataset.train.subset(torch.arange(0)), dataset.test], device)


def _on_device(dataset: Dataset, parts: list[ImageSet], device: torch.device) -> Split:
    train, validation, test = (part.to(device) for part in parts)
    return Split(
        name=dataset.name,
        classes=dataset.classes,
        train=train,
        validation=validation,
        test=test,
        top=dataset.top,
        mean=dataset.mean,
        std=dataset.std,
        fingerprint=fingerprint(parts),
        notes=dataset.notes,
    )


def fingerprint(parts: list[ImageSet]) -> str:
    """Hash of pixels, labels and shapes, 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(repr(tuple(part.images.shape)).encode())
        digest.update(part.images.cpu().contiguous().numpy().data)
        digest.update(part.labels.cpu().contiguous().numpy().data)
    return digest.hexdigest()
