"""The deck's rows: their trainings, in both readings where the deck is ambiguous, and the published figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from kdsearch import spec
from kdsearch.errors import KdsearchError
from kdsearch.records import Config, architecture

Dataset = Literal["mnist", "cifar10"]
Reading = Literal["stated", "published"]
DATASETS: tuple[Dataset, ...] = get_args(Dataset)
READINGS: tuple[Reading, ...] = get_args(Reading)

MNIST_TEACHER_TEMPERATURE = 3.5  # of the published teacher's softmax, whatever a row's T
PASSES = 3  # passes over the data behind the published MNIST accuracies for each epoch that the row states
REDUCED = 500  # images of each class, the first ones, in the reduced training set
PUBLISHED_BLOCKS = {"c3": [2, 2, 1, 1], "c4": [1, 1, 1, 1]}  # the published code builds at least one block a stage
# c8 and c9 differ from c5 and c7 only in the data, so no study file has them: (row, what was published)
REDUCED_ROWS: dict[str, tuple[str, spec.Published]] = {
    "c8": ("c5", spec.Published(accuracy=61.2, ratio=10.33, seconds=60)),
    "c9": ("c7", spec.Published(accuracy=56.0, ratio=9.79, seconds=60)),
}
# the deck names a "quantized" algorithm without figures: here, the int8 form of its usual student, 8-bit features
QUANTISED_ROWS: dict[Dataset, tuple[str, str]] = {"mnist": ("mq", "m7"), "cifar10": ("cq", "c5")}
BITS = 8
PUBLISHED_TEACHER: dict[Dataset, float] = {"mnist": 97.41, "cifar10": 93.65}
"""Test accuracy in percent; on CIFAR-10, where the deck gives none, that of a public ResNet50 that it matches."""


@dataclass(frozen=True)
class Settings:
    """The settings of one training of a row.

    Attributes:
        epochs, batch_size: of the training.
        epochs, batch_size: length and step.
        temperature: of the student's softmax (and the teacher's); None without a teacher.
        teacher_temperature: of the teacher's softmax where it differs.
        per_class: number of training images of each class, the first ones; None: all.
        bits: of the teacher's last feature map, with the student trained and deployed in int8; None: float.
    """

    architecture: Config
    epochs: int
    batch_size: int
    temperature: float | None
    teacher_temperature: float | None = None
    per_class: int | None = None
    bits: int | None = None


@dataclass(frozen=True)
class Row:
    """A row of the deck.

    Attributes:
        name: "m1", "c5".
        readings: settings in both readings; equal where the deck is unambiguous.
        published: accuracy in percent, ratio, seconds of training; None: the deck gives no figure.
        open: what the deck leaves open, and both choices; empty where it is unambiguous.
    """

    name: str
    readings: Mapping[Reading, Settings]
    published: spec.Published | None
    open: str = ""


def rows(dataset: Dataset) -> dict[str, Row]:
    """Return the deck's rows on a data set by name: the shipped study file's anchors, c8 and c9, and the int8 row."""
    anchors = spec.load(spec.shipped(dataset)).anchors
    make = _mnist_row if dataset == "mnist" else _cifar10_row
    found = {name: make(name, anchor) for name, anchor in anchors.items()}
    for name, (like, published) in (REDUCED_ROWS if dataset == "cifar10" else {}).items():
        fewer = {reading: replace(whole, per_class=REDUCED) for reading, whole in found[like].readings.items()}
        found[name] = Row(name, fewer, published)
    name, like = QUANTISED_ROWS[dataset]
    int8 = replace(found[like].readings["stated"], bits=BITS)  # without published figures there is one reading
    found[name] = Row(name, dict.fromkeys(READINGS, int8), None)
    return found


def _settings(config: Config) -> Settings:
    return Settings(architecture(config), config["epochs"], config["batch_size"], config.get("temperature"))


def _published(anchor: spec.Anchor) -> spec.Published:
    assert anchor.published is not None  # a test checks this for the shipped files
    return anchor.published


def _mnist_row(name: str, anchor: spec.Anchor) -> Row:
    stated = _settings(anchor.config)
    published = replace(stated, epochs=PASSES * stated.epochs)
    left = f"epochs seen when the accuracy was taken: {stated.epochs} stated, {published.epochs} published"
    if stated.temperature != MNIST_TEACHER_TEMPERATURE:
        published = replace(published, teacher_temperature=MNIST_TEACHER_TEMPERATURE)
        left += f"; the teacher's T: {stated.temperature:g} stated, {MNIST_TEACHER_TEMPERATURE:g} published"
    return Row(name, {"stated": stated, "published": published}, _published(anchor), left)


def _cifar10_row(name: str, anchor: spec.Anchor) -> Row:
    stated = _settings(anchor.config)
    if name not in PUBLISHED_BLOCKS:
        return Row(name, dict.fromkeys(READINGS, stated), _published(anchor))
    blocks = PUBLISHED_BLOCKS[name]
    published = replace(stated, architecture=stated.architecture | {"blocks": blocks})
    left = f"stages of 0 blocks: left out as stated, {blocks} in the published code"
    return Row(name, {"stated": stated, "published": published}, _published(anchor), left)


@dataclass(frozen=True)
class Job:
    """A row in a reading.

    Attributes:
        row: of the deck.
        reading: "stated" where both readings are equal.
    """

    row: Row
    reading: Reading

    @property
    def settings(self) -> Settings:
        """The settings of the training."""
        return self.row.readings[self.reading]


def choose(dataset: str, names: str | None, reading: str) -> list[Job]:
    """Return the rows to run, each once in each reading asked for; c3 and c4 always in both.

    Args:
        dataset: "mnist" or "cifar10".
        names: of rows, separated by commas; None: all.
        reading: "stated", "published" or "both".

    Raises:
        KdsearchError: the data set, a row or the reading is unknown.
    """
    if dataset not in DATASETS:
        raise KdsearchError("the slides have rows on mnist and cifar10", got=dataset, remedy="choose one of the two")
    if reading not in (*READINGS, "both"):
        raise KdsearchError("--reading must be known", got=reading, remedy="choose one of stated, published, both")
    known = rows("mnist" if dataset == "mnist" else "cifar10")
    wanted = list(known) if names is None else [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise KdsearchError(
            f"--rows must name rows of the slides on {dataset}",
            got=", ".join(unknown) or "none",
            remedy=f"choose among {','.join(known)}",
        )
    asked: list[Reading] = [one for one in READINGS if reading in (one, "both")]
    jobs = []
    for name in dict.fromkeys(wanted):
        row = known[name]
        chosen = list(READINGS) if name in PUBLISHED_BLOCKS else asked
        same = row.readings["stated"] == row.readings["published"]
        jobs += [Job(row, one) for one in (READINGS[:1] if same else chosen)]
    return jobs
