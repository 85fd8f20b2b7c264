"""The slide deck: its rows, in both readings where it is ambiguous, with the published figures; and its recipes.

Where the deck leaves something open, its authors' published code decides (see "The slides, measured" in
reports/README.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kdsearch import data, spec
from kdsearch.data import Images, Split, repeated
from kdsearch.distil import lesson, teacher, train
from kdsearch.distil.answers import Answers
from kdsearch.distil.loss import cls_loss, div_loss, soft_cross_entropy
from kdsearch.distil.train import Batch
from kdsearch.errors import KdsearchError
from kdsearch.records import Config, EpochRecord, Precision, architecture

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

RAMP_EPOCHS = 10  # CIFAR-10: the weight of div_loss is min(1, epoch / 10), epochs counted from 0
KERAS = {"optimizer": "adam", "lr": 1e-3, "epsilon": 1e-7, "init": "glorot"}
HELD_BACK = 0.2  # share of MNIST's training images that the teacher does not see


@dataclass(frozen=True)
class Settings:
    """The settings of one training of a row.

    Attributes:
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
    found = {}
    for name, anchor in spec.load(spec.shipped(dataset)).anchors.items():
        config = anchor.config
        stated = Settings(architecture(config), config["epochs"], config["batch_size"], config.get("temperature"))
        published, left = _as_published(name, stated)
        found[name] = Row(name, {"stated": stated, "published": published}, anchor.published, left)
    for name, (like, figures) in REDUCED_ROWS.items():
        if like in found:
            fewer = replace(found[like].readings["stated"], per_class=REDUCED)
            found[name] = Row(name, dict.fromkeys(READINGS, fewer), figures)
    name, like = QUANTISED_ROWS[dataset]
    int8 = replace(found[like].readings["stated"], bits=BITS)  # without published figures there is one reading
    found[name] = Row(name, dict.fromkeys(READINGS, int8), None)
    return found


def _as_published(name: str, stated: Settings) -> tuple[Settings, str]:
    """Return a row's settings in the published code, and what the deck leaves open."""
    if name in PUBLISHED_BLOCKS:
        blocks = PUBLISHED_BLOCKS[name]
        left = f"stages of 0 blocks: left out as stated, {blocks} in the published code"
        return replace(stated, architecture=stated.architecture | {"blocks": blocks}), left
    if "blocks" in stated.architecture:
        return stated, ""
    published = replace(stated, epochs=PASSES * stated.epochs)
    left = f"epochs seen when the accuracy was taken: {stated.epochs} stated, {published.epochs} published"
    if stated.temperature != MNIST_TEACHER_TEMPERATURE:
        published = replace(published, teacher_temperature=MNIST_TEACHER_TEMPERATURE)
        left += f"; the teacher's T: {stated.temperature:g} stated, {MNIST_TEACHER_TEMPERATURE:g} published"
    return published, left


@dataclass(frozen=True)
class Job:
    """A row in a reading; "stated" where both readings are equal."""

    row: Row
    reading: Reading

    @property
    def settings(self) -> Settings:
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
    jobs = []
    for name in dict.fromkeys(wanted):
        row = known[name]
        if row.readings["stated"] == row.readings["published"]:
            jobs.append(Job(row, "stated"))
        else:
            jobs += [Job(row, one) for one in READINGS if reading in (one, "both") or name in PUBLISHED_BLOCKS]
    return jobs


def mnist_loss(settings: Settings) -> Callable[[Batch], Tensor]:
    """Return soft cross-entropy with the teacher alone, without labels and without the factor T^2."""

    def loss(batch: Batch) -> Tensor:
        assert batch.teacher_logits is not None
        assert settings.temperature is not None
        own = settings.teacher_temperature
        return soft_cross_entropy(batch.logits, batch.teacher_logits, settings.temperature, teacher_temperature=own)

    return loss


def cifar10_loss(settings: Settings) -> Callable[[Batch], Tensor]:
    """Return cls_loss + min(1, epoch / 10) div_loss, epochs counted from 0; cls_loss alone without a temperature."""

    def loss(batch: Batch) -> Tensor:
        labelled = cls_loss(batch.logits, batch.labels)
        if settings.temperature is None:
            return labelled
        assert batch.teacher_logits is not None
        ramp = ((batch.epoch - 1) / RAMP_EPOCHS).clamp(max=1.0)
        return labelled + ramp * div_loss(batch.logits, batch.teacher_logits, settings.temperature)

    return loss


@dataclass(frozen=True)
class Deck:
    """The deck's recipe for the students of a data set.

    Attributes:
        student: family, recipe, threads.
        loss: builds the loss of a batch from a row's settings.
        batch: images of a timing's batch; None: the whole test set at once.
        to_host: whether the timing includes the copy of predictions to the host.
        text: the recipe in words.
    """

    student: spec.StudentSpec
    loss: Callable[[Settings], Callable[[Batch], Tensor]]
    batch: int | None
    to_host: bool
    text: str


DECKS: dict[Dataset, Deck] = {
    "mnist": Deck(
        student=spec.StudentSpec(family="mlp", threads=1, recipe=spec.Recipe.model_validate(KERAS)),
        loss=mnist_loss,
        batch=None,
        to_host=False,
        text=(
            "Student: one hidden layer, taught by the teacher's outputs alone (cross-entropy of softmax(student / T) "
            "with softmax(teacher / T), no label, no factor T^2), Adam at 1e-3 with Keras' epsilon and weights, all "
            "60,000 training images. Teacher: conv 32, dense 1200, dense 1200, dropout 0.5, softmax of logits / 3.5, "
            "one epoch on 48,000 images. Ratio: the whole test set as one batch."
        ),
    ),
    "cifar10": Deck(
        student=spec.StudentSpec(
            family="resnet",
            recipe=spec.Recipe(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        ),
        loss=cifar10_loss,
        batch=100,
        to_host=True,
        text=(
            "Student: a ResNet of basic blocks, cls_loss + min(1, epoch / 10) div_loss with T = 4 and epochs counted "
            "from 0, SGD with Nesterov momentum 0.9 at a constant 0.1, weight decay 5e-4, no augmentation, all 50,000 "
            "training images (c8 and c9: the first 500 of each class). Teacher: ResNet50 by the recipe of our study "
            "file. Ratio: batches of 100, the prediction brought back to the host."
        ),
    ),
}


def teacher_spec(dataset: Dataset, *, max_epochs: int | None, weights: str | None = None) -> spec.TeacherSpec:
    """Return the teacher's recipe: on MNIST the deck's; on CIFAR-10, where it gives none, the shipped study file's.

    Args:
        dataset: of the rows.
        max_epochs: limit of its training; None: no limit.
        weights: file of its weights, which replaces the training.
    """
    shipped = spec.load(spec.shipped(dataset)).limited(max_epochs=max_epochs).teacher
    if weights is not None:
        return shipped.model_copy(update={"recipe": None, "weights": weights})
    return shipped if dataset == "cifar10" else shipped.with_recipe(KERAS)


def teacher_split(dataset: Dataset, whole: data.Dataset, device: torch.device, *, train_size: int | None) -> Split:
    """Return the teacher's training data: 80 % of MNIST's training images, all of CIFAR-10's."""
    if dataset == "cifar10":
        return data.whole(whole, device, train_size=train_size)
    return data.split(whole, spec.DataSpec(name=dataset, validation=HELD_BACK, train_size=train_size), device)


@dataclass(frozen=True)
class School:
    """What every training of a row uses and none changes.

    Attributes:
        split: the students' data, without validation images.
        answers: the teacher's outputs for the students' training images.
        precision: of convolutions in training; None: the device's default.
    """

    dataset: Dataset
    split: Split
    teacher: teacher.Teacher
    answers: Answers
    precision: Precision | None = None

    @property
    def deck(self) -> Deck:
        return DECKS[self.dataset]

    def timed(self, images: Images) -> Tensor:
        """Return what a timing runs on: the images repeated to the deck's batch, or all at once."""
        return images[:] if self.deck.batch is None else repeated(images, self.deck.batch)

    def build(self, settings: Settings, seed: int) -> nn.Module:
        return lesson.build(self.deck.student, settings.architecture, seed=seed, split=self.split)

    def teach(self, student: nn.Module, settings: Settings, seed: int) -> Iterator[EpochRecord]:
        """Train a student by its row's recipe, an epoch a step, without scoring: the deck used the last epoch.

        Raises:
            TrialError: the loss or the weights are not finite.
        """
        recipe = self.deck.student.recipe
        return train.Run(student, self.lesson(settings, seed), recipe, validate=lambda _: float("nan"))

    def lesson(self, settings: Settings, seed: int) -> train.Lesson:
        chosen = first_of_each_class(self.split.train.labels, settings.per_class)
        return train.Lesson(
            data=self.split.train.subset(chosen),
            prepare=self.split.prepare,
            loss=self.deck.loss(settings),
            teacher_logits=None if settings.temperature is None else self.answers.logits[chosen],
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            seed=seed,
            threads=self.deck.student.threads,
            precision=self.precision,
        )


def first_of_each_class(labels: Tensor, count: int | None) -> Tensor:
    """Return the indices of the first `count` images of each class, ascending; None: of all images.

    Args:
        labels: (images,), int64.
        count: at least 1; a smaller class contributes all its images.
    """
    if count is None:
        return torch.arange(len(labels), device=labels.device)
    firsts = [(labels == label).nonzero().flatten()[:count] for label in labels.unique()]
    return torch.cat(firsts).sort().values
