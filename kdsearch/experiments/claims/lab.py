"""The lab that trains the claims' students: arms that differ in one thing, paired by seed, each trained once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch import data, spec
from kdsearch.data import ImageSet, Split, stratified
from kdsearch.distil import answers, lesson, teacher, train
from kdsearch.distil.answers import Answers
from kdsearch.errors import KdsearchError
from kdsearch.experiments.slides.deck import teacher_spec, teacher_split
from kdsearch.measure import hits, latency
from kdsearch.records import Progress, Timing
from kdsearch.system import machine

LEFT_OUT = 3  # the class that the published notebook leaves out
WIDTH, WIDE = 300, 600  # of the deck's rows m7 and m9
SEEDS = 5  # fewest paired seeds for a verdict
TEACHERS = 5  # default number
MARGIN = 0.5  # points, on every data set: what counts as better or worse; at least twice the weight of one test image
NO_LABEL = -100  # label of an image without one: torch's cross-entropy ignores it


@dataclass(frozen=True)
class Settings:
    """The training settings that all students of a data set share, fixed beforehand.

    Attributes:
        epochs, batch_size: of every training.
        teacher_epochs: of a teacher, where its recipe's are too few to beat a student on labels alone.
    """

    epochs: int
    batch_size: int
    teacher_epochs: int | None = None


SETTINGS = {
    "digits": Settings(epochs=30, batch_size=32),
    "mnist": Settings(epochs=3, batch_size=32, teacher_epochs=8),
}


@dataclass(frozen=True)
class Arm:
    """One way to train a student; the arms of a claim differ in one thing.

    Attributes:
        images: the transfer set.
        loss_weight: 0 labels alone, 0.5 cls + div, 1 the teacher alone.
        temperature: of the distillation.
        width: hidden units.
        teacher: "whole" was trained on all training images (on MNIST 80 %, as the deck's), "half" on their first half.
        beside: whether the images are only for div_loss, beside cls_loss on all training images: the deck's own
            mixture for images of another kind.
        budget: factor of the usual epochs.
        ordinary: whether the teacher's logits are divided by the temperature of the softmax that it was trained through
            (3.5), as if that had been an ordinary softmax: only then does a temperature of 4 soften them.
    """

    images: Images = "all"
    loss_weight: float = 1.0
    temperature: float = 3.5
    width: int = WIDTH
    teacher: Literal["whole", "half"] = "whole"
    ordinary: bool = False
    beside: bool = False
    budget: int = 1


Scores = NDArray[np.float64]
"""(teachers, seeds, test images): 1 where a network is right, else 0."""


@dataclass
class Lab:
    """Data, teachers and trained students of an experiment.

    Attributes:
        dataset: "digits" or "mnist".
        published: the data set.
        device: to train on.
        seeds: students of each arm and teacher.
        progress: notified of trainings.
        teachers: number of teachers; each is combined with every seed.
    """

    dataset: str
    published: data.Dataset
    device: torch.device
    seeds: int
    progress: Progress = field(default_factory=Progress)
    teachers: int = 1
    _scores: dict[tuple[Arm, int, int], Tensor] = field(default_factory=dict)
    _images: dict[Images, ImageSet] = field(default_factory=dict)
    _known: dict[tuple[str, int, Images], Answers] = field(default_factory=dict)
    _teachers: dict[tuple[str, int], teacher.Teacher] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The training settings of all students."""
        return SETTINGS[self.dataset]

    @cached_property
    def file(self) -> spec.StudySpec:
        """The shipped study file, which defines students and, on digits, the teacher."""
        return spec.load(spec.shipped(self.dataset))

    @cached_property
    def split(self) -> Split:
        """The data set without validation images."""
        return data.whole(self.published, self.device)

    @cached_property
    def whole(self) -> teacher.Teacher:
        """The first teacher: on MNIST the slides' own but trained longer, on digits the shipped study's."""
        return self._obtain("whole", 0)

    @cached_property
    def half(self) -> teacher.Teacher:
        """The first teacher of the same recipe trained only on the first half of the training images."""
        return self._obtain("half", 0)

    def teacher_of(self, which: Literal["whole", "half"], number: int) -> teacher.Teacher:
        """Return one of the teachers, which differ in their seed."""
        if number == 0:
            return self.whole if which == "whole" else self.half
        if (which, number) not in self._teachers:
            self._teachers[which, number] = self._obtain(which, number)
        return self._teachers[which, number]

    def _obtain(self, which: str, number: int) -> teacher.Teacher:
        part = self.split
        if which == "half":
            seen = self.images("first half")
            part = dataclasses.replace(self.split, train=seen, fingerprint=data.fingerprint([seen, self.split.test]))
        elif self.dataset == "mnist":
            part = teacher_split("mnist", self.published, self.device, train_size=None)
        recipe = self._recipe.model_copy(update={"seed": self._recipe.seed + number})
        return teacher.obtain(recipe, part, progress=self.progress)

    @property
    def _recipe(self) -> spec.TeacherSpec:
        found = teacher_spec("mnist", max_epochs=None) if self.dataset == "mnist" else self.file.teacher
        if self.settings.teacher_epochs is None or found.recipe is None:
            return found
        longer = found.recipe.model_copy(update={"epochs": self.settings.teacher_epochs})
        return found.model_copy(update={"recipe": longer})

    @property
    def taught(self) -> bool:
        """Whether any student was trained."""
        return bool(self._scores)

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.split.classes)

    def images(self, which: Images) -> ImageSet:
        """Return the images of a transfer set."""
        if which not in self._images:
            self._images[which] = transfer_set(which, self.split, left_out=LEFT_OUT)
        return self._images[which]

    def accuracies(self, arm: Arm, *, label: int | None = None) -> list[float]:
        """Return test accuracies of the arm's students, by teacher and seed; with a label, recalls of that class.

        Raises:
            KdsearchError: a training diverged.
        """
        return [float(value) for value in self.scores(arm, label=label).mean(axis=2).ravel()]

    def scores(self, arm: Arm, *, label: int | None = None) -> Scores:
        """Return on which test images the arm's students are right; with a label, for that class only.

        An arm without a teacher is trained once a seed and repeated for each teacher.

        Raises:
            KdsearchError: a training diverged.
        """
        asked = self._asked(label)
        count = self.teachers if arm.loss_weight > 0 else 1
        rows = [[self._hits(arm, number, seed)[asked] for seed in range(self.seeds)] for number in range(count)]
        found = np.array([[one.cpu().numpy() for one in row] for row in rows], dtype=np.float64)
        return np.broadcast_to(found, (self.teachers, *found.shape[1:]))

    def teacher_scores(self, which: Literal["whole", "half"] = "whole") -> Scores:
        """Return on which test images the teachers are right, repeated for each seed."""
        test = self.split.test
        rows = [self.teacher_of(which, number).hits(test) for number in range(self.teachers)]
        found = np.array([row.cpu().numpy() for row in rows], dtype=np.float64)[:, None]
        return np.broadcast_to(found, (self.teachers, self.seeds, found.shape[2]))

    def _asked(self, label: int | None) -> Tensor:
        labels = self.split.test.labels
        return torch.ones_like(labels, dtype=torch.bool) if label is None else labels == label

    def ratio(self, width: int) -> Timing:
        """Measure the inference ratio of a student of that width, as searches do."""
        batch = self.split.prepare(data.repeated(self.split.test.images, self.file.latency.batch))
        with machine.threads(self.file.latency.threads):
            return latency.measure(self.whole.network, self._build(width, 0), batch)

    def _build(self, width: int, seed: int) -> nn.Module:
        return lesson.build(self.file.student, {"width": width}, seed=seed, split=self.split)

    def _hits(self, arm: Arm, number: int, seed: int) -> Tensor:
        """Return (test images,), bool: whether the student of this arm, teacher and seed is right."""
        key = arm, number, seed
        if key not in self._scores:
            student = self._taught(arm, number, seed)
            self._scores[key] = hits(student, self.split.test, self.split.prepare)
            text = f"test accuracy {self._scores[key].double().mean().item():.2%}"
            self.progress.trial_finished(len(self._scores), "COMPLETE", text, counted=True)
        return self._scores[key]

    def _answers(self, arm: Arm, number: int = 0) -> Answers | None:
        """Return the teacher's outputs for the arm's images, computed once; None where it teaches nothing."""
        if arm.loss_weight == 0:
            return None
        key = arm.teacher, number, arm.images
        if key not in self._known:
            network = self.teacher_of(arm.teacher, number).network
            self._known[key] = answers.ask(network, self.images(arm.images), self.split.prepare)
        known = self._known[key]
        recipe = self.file.teacher.recipe
        own = recipe.temperature if arm.ordinary and recipe is not None else 1.0
        return dataclasses.replace(known, logits=known.logits / own)

    def _taught(self, arm: Arm, number: int, seed: int) -> nn.Module:
        epochs = arm.budget * self.settings.epochs
        config: dict[str, Any] = {
            "width": arm.width, "loss_weight": arm.loss_weight, "temperature": arm.temperature,
            "epochs": epochs, "batch_size": self.settings.batch_size,
        }  # fmt: skip
        derived = machine.derive_seed("claims", self.dataset, seed)  # the same for all arms, so that they are paired
        self.progress.trial_started(len(self._scores), f"{describe(arm)}, teacher {number}, seed {seed}", config)
        student = self._build(arm.width, derived)
        known = self._answers(arm, number)
        if arm.beside:
            assert known is not None, "div_loss needs a teacher"
            lesson_ = mixture(self.split, self.images(arm.images), known.logits, config, derived)
            records = train.train(student, lesson_, self.file.student.recipe, validate=lambda _: float("nan"))
        else:
            records = lesson.teach(
                student, config, seed=derived, data=self.images(arm.images), prepare=self.split.prepare,
                answers=known, student_spec=self.file.student,
            )  # fmt: skip
        for record in records:
            self.progress.trial_epoch(len(self._scores), record, epochs)
        return student


def mixture(split: Split, other: ImageSet, answers: Tensor, config: Mapping[str, Any], seed: int) -> train.Lesson:
    """Return a lesson of cls_loss on the training images and div_loss on images of another kind, drawn together.

    Both losses are sums over their images, divided by half a batch, the mean number of images of each.

    Args:
        split: provides the training images with labels.
        other: as many images; their labels are not used.
        answers: (other images, classes), the teacher's logits.
        config: `temperature`, `epochs` and `batch_size`.
        seed: of the training.
    """
    temperature, half = float(config["temperature"]), float(config["batch_size"]) / 2
    none = torch.full_like(other.labels, NO_LABEL)
    both = ImageSet(torch.cat([split.train.images[:], other.images[:]]), torch.cat([split.train.labels, none]))

    def loss(batch: train.Batch) -> Tensor:
        assert batch.teacher_logits is not None
        labels = F.cross_entropy(batch.logits, batch.labels, ignore_index=NO_LABEL, reduction="sum")
        ours, theirs = (F.log_softmax(side / temperature, 1) for side in (batch.logits, batch.teacher_logits))
        each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1) * temperature**2
        total: Tensor = labels + (each * (batch.labels == NO_LABEL)).sum()
        return total / half

    return train.Lesson(
        data=both, prepare=split.prepare, loss=loss,
        teacher_logits=torch.cat([answers.new_zeros(len(split.train), answers.shape[1]), answers]),
        epochs=config["epochs"], batch_size=config["batch_size"], seed=seed,
    )  # fmt: skip


def describe(arm: Arm) -> str:
    """Describe an arm in a few words."""
    how = {0.0: "labels alone", 0.5: "cls + div", 1.0: "the teacher alone"}[arm.loss_weight]
    if arm.loss_weight:
        seen = "first half" if arm.teacher == "half" else "whole set"
        how += f" by the teacher of the {seen}, T {arm.temperature:g}"
    how += " beside labels on real images" if arm.beside else ""
    longer = f", {arm.budget} times the epochs" if arm.budget > 1 else ""
    return f"{how}, images: {arm.images}, width {arm.width}{longer}"


def open_lab(
    dataset: str,
    *,
    seeds: int,
    teachers: int = TEACHERS,
    data_dir: str | None,
    device: str,
    progress: Progress | None = None,
) -> Lab:
    """Open a lab on a data set.

    Args:
        dataset: "digits" or "mnist".
        seeds: of each arm, at least 5.
        teachers: number of teachers, each combined with every seed; at least 1.
        data_dir: where data sets are.
        device: as in `optimize`.
        progress: notified of trainings.

    Raises:
        KdsearchError: the data set is another one, there are too few seeds, or data are missing.
    """
    if dataset not in SETTINGS:
        raise KdsearchError(
            "the claims are tried on digits or mnist", got=dataset,
            remedy="choose one of the two; claims 2 and 3 also read the rows of `kdsearch slides --dataset cifar10`",
        )  # fmt: skip
    if seeds < SEEDS:
        raise KdsearchError(f"a verdict needs at least {SEEDS} paired seeds", got=seeds, remedy="raise --seeds")
    if teachers < 1:
        raise KdsearchError("the claims need a teacher", got=teachers, remedy="give --teachers 1 or more")
    chosen = machine.resolve_device(device)
    published = data.load(spec.DataSpec(name=dataset), machine.data_folder(data_dir))
    return Lab(dataset, published, chosen, seeds, progress or Progress(), teachers=teachers)


Images = Literal["all", "tenth", "first half", "second half", "noise", "photographs", "without a class"]
SEED = 0


def transfer_set(which: Images, split: Split, *, left_out: int) -> ImageSet:
    """Return the images of a transfer set, on the split's device.

    Args:
        which: "all" training images; a stratified "tenth" or half of them; as many images of "noise" (every pixel
            uniform) or patches of "photographs"; or all images "without a class". Noise and photographs have no
            meaningful labels: all are 0.
        split: its training images determine the number.
        left_out: label of the class that is left out.
    """
    train = split.train
    device = train.labels.device
    if which == "all":
        return train
    if which == "without a class":
        return train.subset((train.labels != left_out).nonzero().flatten())
    if which in ("noise", "photographs"):
        count = len(train)
        made = noise(count, split) if which == "noise" else photographs(count, split)
        return ImageSet(made.to(device), torch.zeros(count, dtype=torch.int64, device=device))
    size = len(train) // (10 if which == "tenth" else 2)
    drawn, rest = stratified(train.labels.cpu(), size, SEED, f"a {which} of the training set")
    return train.subset((rest if which == "second half" else drawn).to(device))


def noise(count: int, split: Split) -> Tensor:
    """Return (count, *shape), uint8: every pixel uniform over the data set's range."""
    generator = torch.Generator().manual_seed(machine.derive_seed("noise", SEED))
    return torch.randint(int(split.top) + 1, (count, *split.shape), generator=generator, dtype=torch.uint8)


def photographs(count: int, split: Split) -> Tensor:
    """Return (count, *shape), uint8: grey patches of scikit-learn's two photographs, in the data set's range."""
    from sklearn.datasets import load_sample_images

    pictures = [torch.from_numpy(picture.copy()).float().mean(2) for picture in load_sample_images().images]
    channels, height, width = split.shape
    generator = torch.Generator().manual_seed(machine.derive_seed("photographs", SEED))
    rows, columns = pictures[0].shape
    top = torch.randint(rows - height + 1, (count,), generator=generator)
    left = torch.randint(columns - width + 1, (count,), generator=generator)
    which = torch.randint(len(pictures), (count,), generator=generator)
    stacked = torch.stack(pictures)
    down = top[:, None, None] + torch.arange(height)[None, :, None]
    across = left[:, None, None] + torch.arange(width)[None, None, :]
    patches = stacked[which[:, None, None], down, across] * (split.top / 255.0)
    return patches.round().to(torch.uint8)[:, None].expand(-1, channels, -1, -1).contiguous()
