"""The lab that trains the claims' students: arms that differ in one thing, paired by seed, each trained once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch import data, spec
from kdsearch.data import ImageSet, Split, stratified
from kdsearch.distil import answers, checkpoint, lesson, teacher, train
from kdsearch.distil.answers import Answers
from kdsearch.errors import KdsearchError
from kdsearch.experiments.slides.deck import teacher_spec, teacher_split
from kdsearch.measure import hits, latency
from kdsearch.records import Progress, Timing
from kdsearch.system import files, machine

LEFT_OUT = 3  # the class that the published notebook leaves out
WIDTH, WIDE = 300, 600  # of the deck's rows m7 and m9
SEEDS = 5  # fewest paired seeds for a verdict
MARGIN = 0.5  # points, on every data set: what counts as better or worse; at least twice the weight of one test image
# sources that determine a student and which test images it is right on
DECIDE = (
    "data", "distil", "measure/accuracy.py", "networks", "records.py", "spec", "system/machine.py",
    "experiments/claims/lab.py",
)  # fmt: skip
NO_LABEL = -100  # label of an image without one: torch's cross-entropy ignores it
SEED = 0  # of the transfer sets

Images = Literal["all", "tenth", "first half", "second half", "noise", "photographs", "without a class"]
Seen = Literal["whole", "half"]
"""What a teacher was trained on: all training images (on MNIST 80 %, as the deck's), or their first half."""


@dataclass(frozen=True)
class Settings:
    """The training settings that all students of a data set share, fixed beforehand.

    Attributes:
        teacher: what replaces keys of its recipe, by which it is not shown to be better than a student on labels.
    """

    epochs: int
    batch_size: int
    teacher: Mapping[str, Any] = field(default_factory=dict)


SETTINGS = {
    "digits": Settings(epochs=30, batch_size=32, teacher={"epochs": 100, "augment": {"shift": 1}}),
    "mnist": Settings(epochs=3, batch_size=32, teacher={"epochs": 8}),
}


@dataclass(frozen=True)
class Arm:
    """One way to train a student; the arms of a claim differ in one thing.

    Attributes:
        images: the transfer set.
        loss_weight: 0 labels alone, 0.5 cls + div, 1 the teacher alone.
        width: hidden units.
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
    teacher: Seen = "whole"
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
        seeds: students of each arm and teacher.
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
    _known: dict[tuple[Seen, int, Images], Answers] = field(default_factory=dict)
    _teachers: dict[tuple[Seen, int], teacher.Teacher] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return SETTINGS[self.dataset]

    @cached_property
    def file(self) -> spec.StudySpec:
        """The shipped study file, which defines students and, on digits, the teacher."""
        return spec.load(spec.shipped(self.dataset))

    @cached_property
    def split(self) -> Split:
        return data.whole(self.published, self.device)

    def teacher_of(self, which: Seen = "whole", number: int = 0) -> teacher.Teacher:
        """Return one of the teachers, which differ in their seed."""
        if (which, number) not in self._teachers:
            part = self.split
            if which == "half":
                seen = self.images("first half")
                part = dataclasses.replace(part, train=seen, fingerprint=data.fingerprint([seen, part.test]))
            elif self.dataset == "mnist":
                part = teacher_split("mnist", self.published, self.device, train_size=None)
            recipe = self._teacher_spec.model_copy(update={"seed": self._teacher_spec.seed + number})
            self._teachers[which, number] = teacher.obtain(recipe, part, progress=self.progress)
        return self._teachers[which, number]

    @property
    def _teacher_spec(self) -> spec.TeacherSpec:
        """The teachers', but for the seed: the slides' or the shipped study's by a better recipe."""
        found = teacher_spec("mnist", max_epochs=None) if self.dataset == "mnist" else self.file.teacher
        return found.with_recipe(self.settings.teacher)

    @property
    def any_trained(self) -> bool:
        """Whether any student was trained."""
        return bool(self._scores)

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.split.classes)

    def images(self, which: Images) -> ImageSet:
        if which not in self._images:
            self._images[which] = transfer_set(which, self.split)
        return self._images[which]

    def scores(self, arm: Arm, *, label: int | None = None) -> Scores:
        """Return on which test images the arm's students are right; with a label, for that class only.

        An arm without a teacher is trained once a seed and repeated for each teacher.

        Raises:
            KdsearchError: a training diverged.
        """
        asked = slice(None) if label is None else self.split.test.labels == label
        count = self.teachers if arm.loss_weight > 0 else 1
        rows = [
            [self._hits(arm, number, seed)[asked].cpu().numpy() for seed in range(self.seeds)]
            for number in range(count)
        ]
        found = np.array(rows, dtype=np.float64)
        return np.broadcast_to(found, (self.teachers, *found.shape[1:]))

    def teacher_scores(self, which: Seen = "whole") -> Scores:
        """Return on which test images the teachers are right, repeated for each seed."""
        test = self.split.test
        rows = [self.teacher_of(which, number).hits(test).cpu().numpy() for number in range(self.teachers)]
        found = np.array(rows, dtype=np.float64)[:, None]
        return np.broadcast_to(found, (self.teachers, self.seeds, found.shape[2]))

    def ratio(self, width: int) -> Timing:
        """Measure the inference ratio of a student of that width, as searches do."""
        batch = self.split.prepare(data.repeated(self.split.test.images, self.file.latency.batch))
        with machine.threads(self.file.latency.threads):
            return latency.measure(self.teacher_of().network, self._build(width, 0), batch)

    def _build(self, width: int, seed: int) -> nn.Module:
        return lesson.build(self.file.student, {"width": width}, seed=seed, split=self.split)

    def _hits(self, arm: Arm, number: int, seed: int) -> Tensor:
        """Return (test images,), bool: whether the student of this arm, teacher and seed is right.

        Each is kept in the cache folder, so that an interrupted command goes on where it stopped.
        """
        key = arm, number, seed
        if key not in self._scores:
            path = self._kept_file(arm, number, seed)
            try:
                found, text = files.load_tensors(path, self.device)[0]["hits"], ", kept by an earlier run"
            except (OSError, ValueError):
                found, text = hits(self._trained(arm, number, seed), self.split.test, self.split.prepare), ""
                files.save_tensors(path, {"hits": found}, {})
            text = f"test accuracy {found.double().mean().item():.2%}{text}"
            self.progress.trial_finished(len(self._scores), "COMPLETE", text, counted=True)
            self._scores[key] = found
        return self._scores[key]

    def _kept_file(self, arm: Arm, number: int, seed: int) -> Path:
        taught_by = self.teacher_of(arm.teacher, number).facts.fingerprint if arm.loss_weight else None
        name = checkpoint.digest(
            machine.sources_digest(*DECIDE), torch.__version__, machine.device_model(self.device),
            self.split.fingerprint, self.file.student.model_dump(mode="json"), dataclasses.asdict(self.settings),
            dataclasses.asdict(arm), taught_by, seed,
        )  # fmt: skip
        return machine.cache_folder() / "claims" / f"{name}.safetensors"

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

    def _trained(self, arm: Arm, number: int, seed: int) -> nn.Module:
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
            records = train.Run(student, lesson_, self.file.student.recipe, validate=lambda _: float("nan"))
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
    how = {0.0: "labels alone", 0.5: "cls + div", 1.0: "the teacher alone"}[arm.loss_weight]
    if arm.loss_weight:
        seen = "first half" if arm.teacher == "half" else "whole set"
        how += f" by the teacher of the {seen}, T {arm.temperature:g}"
    beside = " beside labels on real images" if arm.beside else ""
    longer = f", {arm.budget} times the epochs" if arm.budget > 1 else ""
    return f"{how}{beside}, images: {arm.images}, width {arm.width}{longer}"


def open_lab(dataset: str, *, seeds: int, teachers: int, data_dir: str | None, device: str, progress: Progress) -> Lab:
    """Open a lab on "digits" or "mnist"; arguments as in `Lab`, the device as in `optimize`.

    Raises:
        KdsearchError: the data set is another one, there are too few seeds or teachers, or data are missing.
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
    return Lab(dataset, published, chosen, seeds, progress, teachers)


def transfer_set(which: Images, split: Split) -> ImageSet:
    """Return the images of a transfer set, on the split's device.

    Args:
        which: "all" training images; a stratified "tenth" or half of them; as many images of "noise" (every pixel
            uniform) or patches of "photographs"; or all images "without a class". Noise and photographs have no
            meaningful labels: all are 0.
        split: its training images determine the number.
    """
    train = split.train
    if which == "all":
        return train
    if which == "without a class":
        return train.subset((train.labels != LEFT_OUT).nonzero().flatten())
    if which in ("noise", "photographs"):
        made = _noise(split) if which == "noise" else _photographs(split)
        return ImageSet(made.to(train.labels.device), torch.zeros_like(train.labels))
    size = len(train) // (10 if which == "tenth" else 2)
    drawn, rest = stratified(train.labels.cpu(), size, SEED, f"a {which} of the training set")
    return train.subset((rest if which == "second half" else drawn).to(train.labels.device))


def _noise(split: Split) -> Tensor:
    """Return (training images, *shape), uint8: every pixel uniform over the data set's range."""
    generator = torch.Generator().manual_seed(machine.derive_seed("noise", SEED))
    return torch.randint(int(split.top) + 1, (len(split.train), *split.shape), generator=generator, dtype=torch.uint8)


def _photographs(split: Split) -> Tensor:
    """Return (training images, *shape), uint8: grey patches of scikit-learn's two photographs, in the range."""
    from sklearn.datasets import load_sample_images

    pictures = torch.stack([torch.from_numpy(one.copy()).float().mean(2) for one in load_sample_images().images])
    count = len(split.train)
    channels, height, width = split.shape
    generator = torch.Generator().manual_seed(machine.derive_seed("photographs", SEED))
    _, rows, columns = pictures.shape
    top = torch.randint(rows - height + 1, (count,), generator=generator)
    left = torch.randint(columns - width + 1, (count,), generator=generator)
    which = torch.randint(len(pictures), (count,), generator=generator)
    down = top[:, None, None] + torch.arange(height)[None, :, None]
    across = left[:, None, None] + torch.arange(width)[None, None, :]
    patches = pictures[which[:, None, None], down, across] * (split.top / 255.0)
    return patches.round().to(torch.uint8)[:, None].expand(-1, channels, -1, -1).contiguous()
