"""Where the claims' students are taught: arms that differ in one thing, paired by seed, each trained once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from kdsearch import data, spec
from kdsearch.data import ImageSet, Split
from kdsearch.distil import answers, lesson, teacher
from kdsearch.distil.answers import Answers
from kdsearch.errors import KdsearchError
from kdsearch.experiments.claims import transfer
from kdsearch.experiments.claims.transfer import Images
from kdsearch.experiments.slides.deck_recipes import teacher_spec, teacher_split
from kdsearch.measure import latency, logits
from kdsearch.progress import Progress
from kdsearch.records import Timing
from kdsearch.system import machine

LEFT_OUT = 3  # the class that the published notebook leaves out
WIDTH, WIDE = 300, 600  # of the deck's rows m7 and m9
SEEDS = 5  # paired ones at least: a verdict needs them


@dataclass(frozen=True)
class Settings:
    """What the students of a data set share, fixed beforehand.

    Attributes:
        epochs, batch_size: of every training.
        margins: in points of accuracy: "loss" is the least that counts as worse, "gain" the least that counts as
            better.
    """

    epochs: int
    batch_size: int
    margins: Mapping[Literal["loss", "gain"], float]


SETTINGS = {
    "digits": Settings(epochs=30, batch_size=32, margins={"loss": 1.0, "gain": 0.2}),
    "mnist": Settings(epochs=3, batch_size=32, margins={"loss": 0.5, "gain": 0.1}),
}
"""450 test images tell a point or so on digits; 10,000 tell half a point on MNIST."""


@dataclass(frozen=True)
class Arm:
    """One way to teach a student; the arms of a claim differ in one thing.

    Attributes:
        images: what it is taught with.
        loss_weight: 0 labels alone, 0.5 cls + div, 1 the teacher alone.
        temperature: of the distillation.
        width: hidden units.
        teacher: "whole" has seen all training images (on MNIST 80 %, as the deck's), "half" the first half of them.
        ordinary: whether the teacher's logits are divided by the temperature of the softmax that it was trained through
            (3.5), as if that had been an ordinary softmax: only then does a temperature of 4 soften them.
    """

    images: Images = "all"
    loss_weight: float = 1.0
    temperature: float = 3.5
    width: int = WIDTH
    teacher: Literal["whole", "half"] = "whole"
    ordinary: bool = False


@dataclass
class Lab:
    """Data, teachers and the students that were taught.

    Attributes:
        dataset: "digits" or "mnist".
        published: the data set.
        device: to train on.
        seeds: how many of each arm.
        progress: told of trainings.
    """

    dataset: str
    published: data.Dataset
    device: torch.device
    seeds: int
    progress: Progress = field(default_factory=Progress)
    _scores: dict[tuple[Arm, int], Tensor] = field(default_factory=dict)
    _images: dict[Images, ImageSet] = field(default_factory=dict)
    _known: dict[tuple[str, Images], Answers] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """What all students share."""
        return SETTINGS[self.dataset]

    @cached_property
    def file(self) -> spec.StudySpec:
        """The shipped study file: students and, on digits, the teacher."""
        return spec.load(spec.shipped(self.dataset))

    @cached_property
    def split(self) -> Split:
        """The data set with nothing held back."""
        return data.whole(self.published, self.device)

    @cached_property
    def whole(self) -> teacher.Teacher:
        """The teacher: on MNIST the slides' own, on digits the shipped study's with nothing held back."""
        part = self.split
        if self.dataset == "mnist":
            part = teacher_split("mnist", self.published, self.device, train_size=None)
        return teacher.obtain(self._recipe, part, progress=self.progress)

    @cached_property
    def half(self) -> teacher.Teacher:
        """A teacher of the same recipe that has seen the first half of the training images alone."""
        seen = self.images("first half")
        part = dataclasses.replace(self.split, train=seen, fingerprint=data.fingerprint([seen, self.split.test]))
        return teacher.obtain(self._recipe, part, progress=self.progress)

    @property
    def _recipe(self) -> spec.TeacherSpec:
        return teacher_spec("mnist", max_epochs=None) if self.dataset == "mnist" else self.file.teacher

    @property
    def taught(self) -> bool:
        """Whether any student was."""
        return bool(self._scores)

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.split.classes)

    def images(self, which: Images) -> ImageSet:
        """The images of a transfer set."""
        if which not in self._images:
            self._images[which] = transfer.choose(which, self.split, left_out=LEFT_OUT)
        return self._images[which]

    def accuracies(self, arm: Arm, *, label: int | None = None) -> list[float]:
        """Test accuracy of the arm's students, a fraction a seed; with a label, recall of that class.

        Raises:
            KdsearchError: a training did not stay finite.
        """
        labels = self.split.test.labels
        asked = torch.ones_like(labels, dtype=torch.bool) if label is None else labels == label
        hits = [self._hits(arm, seed)[asked] for seed in range(self.seeds)]
        return [one.double().mean().item() for one in hits]

    def ratio(self, width: int) -> Timing:
        """The inference ratio of a student of that width, as searches measure it."""
        batch = self.split.prepare(data.repeated(self.split.test.images, self.file.latency.batch))
        with machine.threads(self.file.latency.threads):
            return latency.measure(self.whole.network, self._build(width, 0), batch)

    def _build(self, width: int, seed: int) -> nn.Module:
        return lesson.build(self.file.student, {"width": width}, seed=seed, split=self.split)

    def _hits(self, arm: Arm, seed: int) -> Tensor:
        """(test images,), bool: whether the student of this arm and seed is right."""
        if (arm, seed) not in self._scores:
            student = self._taught(arm, seed)
            right = logits(student, self.split.test.images, self.split.prepare).argmax(1) == self.split.test.labels
            self._scores[arm, seed] = right
            text = f"test accuracy {right.double().mean().item():.2%}"
            self.progress.trial_finished(len(self._scores), "COMPLETE", text, counted=True)
        return self._scores[arm, seed]

    def _answers(self, arm: Arm) -> Answers | None:
        """The teacher's answers to the arm's images, asked once; None where it teaches nothing."""
        if arm.loss_weight == 0:
            return None
        key = arm.teacher, arm.images
        if key not in self._known:
            network = (self.half if arm.teacher == "half" else self.whole).network
            self._known[key] = answers.ask(network, self.images(arm.images), self.split.prepare)
        known = self._known[key]
        recipe = self.file.teacher.recipe
        own = recipe.temperature if arm.ordinary and recipe is not None else 1.0
        return dataclasses.replace(known, logits=known.logits / own)

    def _taught(self, arm: Arm, seed: int) -> nn.Module:
        config = {
            "width": arm.width, "loss_weight": arm.loss_weight, "temperature": arm.temperature,
            "epochs": self.settings.epochs, "batch_size": self.settings.batch_size,
        }  # fmt: skip
        derived = machine.derive_seed("claims", self.dataset, seed)  # equal for all arms: they are paired
        self.progress.trial_started(len(self._scores), f"{describe(arm)}, seed {seed}", config)
        student = self._build(arm.width, derived)
        records = lesson.teach(
            student, config, seed=derived, data=self.images(arm.images), prepare=self.split.prepare,
            answers=self._answers(arm), student_spec=self.file.student,
        )  # fmt: skip
        for record in records:
            self.progress.trial_epoch(len(self._scores), record, self.settings.epochs)
        return student


def describe(arm: Arm) -> str:
    """An arm in a few words."""
    how = {0.0: "labels alone", 0.5: "cls + div", 1.0: "the teacher alone"}[arm.loss_weight]
    if arm.loss_weight:
        seen = "first half" if arm.teacher == "half" else "whole set"
        how += f" by the teacher of the {seen}, T {arm.temperature:g}"
    return f"{how}, images: {arm.images}, width {arm.width}"


def open_lab(dataset: str, *, seeds: int, data_dir: str | None, device: str, progress: Progress | None = None) -> Lab:
    """A lab on a data set.

    Args:
        dataset: "digits" or "mnist".
        seeds: of each arm, at least 5.
        data_dir: where data sets lie.
        device: as of `optimize`.
        progress: told of trainings.

    Raises:
        KdsearchError: another data set, too few seeds, or data that are missing.
    """
    if dataset not in SETTINGS:
        raise KdsearchError(
            "the claims are tried on digits or mnist", got=dataset,
            remedy="choose one of the two; claims 2 and 3 also read the rows of `kdsearch slides --dataset cifar10`",
        )  # fmt: skip
    if seeds < SEEDS:
        raise KdsearchError(f"a verdict needs at least {SEEDS} paired seeds", got=seeds, remedy="raise --seeds")
    chosen = machine.resolve_device(device)
    published = data.load(spec.DataSpec(name=dataset), machine.data_folder(data_dir))
    return Lab(dataset, published, chosen, seeds, progress or Progress())
