"""The deck's recipes: training of teachers and students, losses, and timing of inference.

Where the deck leaves something open, its authors' published code decides (see the README's section on the slides).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsearch import data, spec
from kdsearch.data import Split
from kdsearch.distil import lesson, teacher, train
from kdsearch.distil.answers import Answers
from kdsearch.distil.loss import cls_loss, div_loss, soft_cross_entropy
from kdsearch.distil.train import Batch
from kdsearch.experiments.slides.rows import Dataset, Settings
from kdsearch.records import EpochRecord, Precision, Progress

RAMP_EPOCHS = 10  # CIFAR-10: the weight of div_loss is min(1, epoch / 10), epochs counted from 0
KERAS = {"optimizer": "adam", "lr": 1e-3, "epsilon": 1e-7, "init": "glorot"}
HELD_BACK = 0.2  # share of MNIST's training images that the teacher does not see


def mnist_loss(settings: Settings) -> Callable[[Batch], Tensor]:
    """Return soft cross-entropy with the teacher alone, without labels and without the factor T^2."""

    def loss(batch: Batch) -> Tensor:
        assert batch.teacher_logits is not None
        assert settings.temperature is not None
        return soft_cross_entropy(
            batch.logits,
            batch.teacher_logits,
            settings.temperature,
            teacher_temperature=settings.teacher_temperature,
        )

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
        max_epochs: most epochs of its training; None: no limit.
        weights: file of its weights, which replaces the training.
    """
    shipped = spec.load(spec.shipped(dataset)).limited(max_epochs=max_epochs).teacher
    if weights is not None:
        return shipped.model_copy(update={"recipe": None, "weights": weights})
    if dataset == "cifar10" or shipped.recipe is None:
        return shipped
    recipe = spec.TeacherRecipe.model_validate(shipped.recipe.model_dump() | KERAS)
    return shipped.model_copy(update={"recipe": recipe})


def teacher_split(dataset: Dataset, whole: data.Dataset, device: torch.device, *, train_size: int | None) -> Split:
    """Return the teacher's training data: 80 % of MNIST's training images, all of CIFAR-10's."""
    if dataset == "cifar10":
        return data.whole(whole, device, train_size=train_size)
    return data.split(whole, spec.DataSpec(name=dataset, validation=HELD_BACK, train_size=train_size), device)


@dataclass(frozen=True)
class School:
    """What every training of a row uses and none changes.

    Attributes:
        dataset: "mnist" or "cifar10".
        split: the students' data, without validation images.
        teacher: frozen.
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
        """The data set's recipe."""
        return DECKS[self.dataset]

    def build(self, settings: Settings, seed: int) -> nn.Module:
        """Build an untrained student."""
        return lesson.build(self.deck.student, settings.architecture, seed=seed, split=self.split)

    def teach(self, student: nn.Module, settings: Settings, seed: int) -> Iterator[EpochRecord]:
        """Train a student by its row's recipe, an epoch a step, without scoring: the deck used the last epoch.

        Raises:
            TrialError: the loss or the weights are not finite.
        """
        recipe = self.deck.student.recipe
        return train.Run(student, self.lesson(settings, seed), recipe, validate=lambda _: float("nan"))

    def lesson(self, settings: Settings, seed: int) -> train.Lesson:
        """Return the lesson of a row's student."""
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


def open_school(
    dataset: Dataset,
    split: Split,
    seen: Split,
    *,
    max_epochs: int | None = None,
    weights: str | None = None,
    precision: Precision | None = None,
    progress: Progress | None = None,
) -> School:
    """Train or load the deck's teacher and compute its outputs for the students' images.

    Args:
        dataset: of the rows.
        split: the students' data.
        seen: the teacher's training data, of `teacher_split`.
        max_epochs, weights: see `teacher_spec`.
        precision: of convolutions in training; None: the device's default.
        progress: notified of the teacher's training.

    Raises:
        KdsearchError: the teacher's training diverged.
    """
    wanted = teacher_spec(dataset, max_epochs=max_epochs, weights=weights)
    known = teacher.obtain(wanted, seen, precision=precision, progress=progress)
    return School(dataset, split, known, known.answers(split.train), precision)
