"""The teacher: trained once, cached by its fingerprint, and asked once for its answers to the training set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.data import ImageSet, Split, views
from kdsearch.distil import answers, train
from kdsearch.distil.answers import Answers, ViewAnswers
from kdsearch.distil.checkpoint import Checkpoint
from kdsearch.distil.loss import cls_loss
from kdsearch.distil.step import format_for
from kdsearch.distil.weight_files import load_weights, opened
from kdsearch.errors import TeacherError, TrialError
from kdsearch.networks import custom
from kdsearch.records import Precision, Progress, TeacherFacts
from kdsearch.spec import Augment, TeacherSpec
from kdsearch.stats import proportion_interval
from kdsearch.system import files, machine

FACTS = "facts"
AGAIN_TOLERANCE = 1e-4  # of the largest logit, for two passes in one process: more is a network of random answers
NETWORK = ("family", "build", "options", "mean", "std", "size")  # keys of [teacher] that decide the computation


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher.

    Attributes:
        network: in evaluation mode, on the split's device.
        prepare: preprocessing, from image bytes to its input.
        facts: for the report.
        precision: of its convolutions when it is asked; None: the device's default.
    """

    network: nn.Module
    prepare: answers.Prepare
    facts: TeacherFacts
    precision: Precision | None = None

    def answers_to_shown(
        self, data: ImageSet, augment: Augment, *, begins: ImageSet | None = None
    ) -> Answers | ViewAnswers:
        """Return its answers to what a student sees: the images, or a table of their views if the recipe augments.

        The table of images at the beginning of the data, `begins`, is reused.
        """
        if views.count(augment) == 1:
            return self.answers(data)
        return answers.ViewAnswers(
            self.network, data, self.prepare, augment, folder=_folder("answers"), name=self.facts.answers_name,
            precision=self.precision, begins=begins,
        )  # fmt: skip

    def answers(self, data: ImageSet, *, network: nn.Module | None = None, kind: str = "") -> Answers:
        """Return its answers to images on its device, from the cache if possible.

        Args:
            data: images and labels.
            network: a modified form of it to ask; None: itself.
            kind: name of that form in the cache.

        Raises:
            KdsearchError: the cache cannot be written.
        """
        name = f"{self.facts.answers_name}-{kind}" if kind else self.facts.answers_name
        changed = network is not None  # by quantisation, which folding would undo
        return answers.obtain(
            network or self.network, data, self.prepare, folder=_folder("answers"), name=name,
            precision=None if changed else self.precision, fold=not changed,
        )  # fmt: skip

    def hits(self, data: ImageSet) -> Tensor:
        """Return which images it classifies rightly in float32: (images,), bool; from the cache if possible."""
        return _hits(self.network, data, self.prepare, self.facts.answers_name)


def fingerprint(spec: TeacherSpec, split: Split) -> str:
    """Return a hash of data and network with recipe and seed, or with the given weights; 16 hexadecimal digits.

    Raises:
        TeacherError: the weights cannot be read.
    """
    described = spec.described()
    if spec.weights is not None:
        described = {key: described[key] for key in NETWORK if key in described}
        with opened(Path(spec.weights).expanduser()) as file:
            described["weights"] = hashlib.file_digest(file, "sha256").hexdigest()
    text = json.dumps([described, split.fingerprint, list(split.classes)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _folder(name: str) -> Path:
    return machine.cache_folder() / name


def cached_file(spec: TeacherSpec, split: Split) -> Path:
    """Return the file of this teacher in the cache, existing or not."""
    return _folder("teachers") / f"{spec.title.replace(':', '.')}-{fingerprint(spec, split)}.safetensors"


def obtain(
    spec: TeacherSpec, split: Split, *, precision: Precision | None = None, progress: Progress | None = None
) -> Teacher:
    """Return the study's teacher: from the cache, else from its `weights`, else trained; then cached.

    Processes that need the same teacher at once wait for the first one.

    Args:
        spec: `[teacher]` of a study.
        split: the study's data on the device to use.
        precision: of its convolutions in training and when it is asked; None: the device's default. A cached teacher is
            used whatever its training precision.
        progress: receives the training's events.

    Raises:
        TeacherError: a function, network or weights do not fit, the training did not stay finite, or a teacher that the
            user brought is near chance (`check_accuracy`).
    """
    progress = progress or Progress()
    path = cached_file(spec, split)
    with files.locked(path):
        teacher = _from_cache(spec, split, path, progress)
        if teacher is None:
            teacher = _make(spec, split, precision, progress)
            if spec.brought:
                check_accuracy(teacher.facts, split)  # before it is kept: what is wrong may be its code
            facts = json.dumps(dataclasses.asdict(teacher.facts))
            files.save_tensors(path, teacher.network.state_dict(), {FACTS: facts})
            if spec.weights is None:
                _checkpoint(spec, split, precision, progress).remove()
    if spec.brought and not teacher.facts.probe and not _probe(teacher.network, split):  # older ones were kept without
        progress.warning(
            f"{spec.title} returns other logits each time it is asked (dropout that stays on?): its accuracy and its "
            "answers are of one draw"
        )
    if isinstance(teacher.network, custom.Logarithm):
        progress.warning(f"{spec.title} ends in a softmax (its outputs sum to 1): their logarithms are its logits here")
    try:
        check_accuracy(teacher.facts, split)
    except TeacherError as error:
        if spec.brought:
            raise
        remedy = "train it longer ([teacher.recipe] epochs), and see that the images show what they should"
        progress.warning(f"{error.rule} (got {error.got}); {remedy}")  # a first look may well be this short
    return dataclasses.replace(teacher, precision=precision)


def has_answered(
    spec: TeacherSpec, split: Split, augment: Augment, network: nn.Module, precision: Precision | None
) -> bool:
    """Return whether all the teacher's answers to the training images are cached from an earlier study."""
    if views.count(augment) > 1:
        return False  # a table of views is filled as they are drawn
    name = fingerprint(spec, split)
    if spec.brought:
        try:
            name = _kept(cached_file(spec, split), torch.device("cpu"))[1].answers_name
        except (OSError, KeyError, TypeError, ValueError):
            return False  # the teacher is not kept, so neither are its answers
    return answers.kept_file(network, split.train, precision, folder=_folder("answers"), name=name).is_file()


def check_accuracy(facts: TeacherFacts, split: Split) -> None:
    """Refuse a teacher that is not significantly better than always predicting the most frequent class.

    The whole 95 % interval (Wilson's) of its validation accuracy must lie above that class's share of the validation
    images. Without validation images nothing is checked.

    Raises:
        TeacherError: it is not better.
    """
    if facts.validation_accuracy is None:
        return
    labels = split.validation.labels
    chance = int(labels.bincount().max()) / len(labels)
    interval = proportion_interval(facts.validation_accuracy, len(labels))
    if interval.low <= chance:
        raise TeacherError(
            f"a teacher must be better than naming the most frequent class, which is right in {chance:.1%}",
            got=f"{facts.validation_accuracy:.1%} ({interval.low:.1%} to {interval.high:.1%}) of {len(labels)} "
            f"validation images from {facts.family}",
            remedy="check the order of its classes and its mean, std and size, or train it longer",
        )


def untrained(spec: TeacherSpec, split: Split) -> nn.Module:
    """Return the teacher's network before training or weights, on the split's device.

    Raises:
        StudyFileError: its family is unknown.
        TeacherError: its function is missing or fails, or its network does not return logits of the data's classes.
    """
    with machine.seeded(machine.derive_seed("teacher", spec.seed), torch.device("cpu")):
        network = networks.teacher_network(spec, split.shape, len(split.classes))
        network = custom.adapted(network, spec, (split.mean, split.std))
        if spec.brought or isinstance(network, custom.Adapted):  # it also draws the weights of lazy layers
            network = custom.with_logits(network, spec.title, split.shape, len(split.classes))
        if spec.recipe is not None and spec.recipe.init == "glorot":
            networks.glorot_(network)
    return network.to(split.train.labels.device)


def _make(spec: TeacherSpec, split: Split, precision: Precision | None, progress: Progress) -> Teacher:
    network = untrained(spec, split)
    seconds = 0.0
    trained: Precision | Literal[""] = ""
    if spec.weights is not None:
        for note in load_weights(custom.core(network), Path(spec.weights).expanduser()):
            progress.note(note)
    else:
        trained = format_for(network, split.train.labels.device, precision).precision
        try:
            seconds = _train(network, spec, split, precision, progress)
        except (AttributeError, ValueError, TypeError, IndexError, RuntimeError) as error:
            if not spec.brought or isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
                raise
            raise TeacherError(
                f"the teacher's network must train: {custom.reason(error)}",
                got=spec.title,
                remedy="correct it, or give its [teacher] weights",
            ) from error
    facts = TeacherFacts(
        family=spec.title,
        fingerprint=fingerprint(spec, split),
        accuracy=math.nan,
        validation_accuracy=None,
        parameters=networks.parameters(network),
        bytes=networks.size_bytes(network),
        seconds=seconds,
        precision=trained,
        probe=_probe(network, split) if spec.brought else [],
    )

    def accuracy(data: ImageSet) -> float:
        return _hits(network, data, split.prepare, facts.answers_name).double().mean().item()

    validation = accuracy(split.validation) if len(split.validation) else None
    facts = dataclasses.replace(facts, accuracy=accuracy(split.test), validation_accuracy=validation)
    progress.teacher_finished(facts.accuracy, seconds)
    return Teacher(networks.frozen(network), split.prepare, facts)


def _probe(network: nn.Module, split: Split) -> list[float]:
    """Return a network's logits of two images of noise, those that are not finite as 0; none if they are random."""
    network.eval()
    device = split.train.labels.device
    with torch.no_grad():  # noise is drawn for each pass, which may change its input in place
        first, second = (network(custom.noise(split.shape).to(device)).float() for _ in range(2))
    same = custom.alike(first, second, AGAIN_TOLERANCE)
    return first.nan_to_num(posinf=0.0, neginf=0.0).flatten().tolist() if same else []


def check_same(facts: TeacherFacts, stored: TeacherFacts, *, given: bool) -> str | None:
    """Refuse a teacher that computes something else than the study's; return a warning where training may differ.

    Args:
        facts, stored: of the teacher at hand, and as the study has them.
        given: whether its weights are given, so that only its code can have changed.

    Raises:
        TeacherError: it does, though its weights are the same.
    """
    if not stored.probe or _same(facts.probe, stored.probe):
        return None
    if given:
        raise TeacherError(
            "a study's teacher must stay the same: with the same weights its code computes something else now",
            got=facts.family,
            remedy="put its code back, or choose another --name",
        )
    return (
        f"{facts.family} was made again and is not the teacher of the study's earlier trials; another --name keeps both"
    )


def _same(probe: list[float], kept: list[float]) -> bool:
    """Return whether two probes, the second not empty, are of one network but for another machine's rounding."""
    return len(probe) == len(kept) and custom.alike(torch.tensor(probe), torch.tensor(kept))


def _hits(network: nn.Module, data: ImageSet, prepare: answers.Prepare, name: str) -> Tensor:
    found = answers.obtain(network, data, prepare, folder=_folder("answers"), name=name, precision="float32")
    return found.logits.argmax(1) == data.labels


def _checkpoint(spec: TeacherSpec, split: Split, precision: Precision | None, progress: Progress) -> Checkpoint:
    return Checkpoint(f"teacher-{fingerprint(spec, split)}-{precision or 'usual'}", progress.warning)


def _train(
    network: nn.Module, spec: TeacherSpec, split: Split, precision: Precision | None, progress: Progress
) -> float:
    """Train the teacher, resuming from its checkpoint if there is one; return the seconds in all."""
    recipe = spec.recipe
    assert recipe is not None, "a teacher without weights has a recipe"
    lesson = train.Lesson(
        data=split.train,
        prepare=split.prepare,
        loss=lambda batch: cls_loss(batch.logits / recipe.temperature, batch.labels),
        teacher_logits=None,
        epochs=recipe.epochs,
        batch_size=min(recipe.batch_size, len(split.train)),
        seed=machine.derive_seed("teacher", spec.seed),
        precision=precision,
        on_step=lambda step: progress.teacher_batch(step / (recipe.epochs * lesson.steps)),
    )

    def begin(state: train.State | None) -> tuple[train.Run, float]:
        before = 0.0 if state is None else float(state["seconds"])
        # The teacher is taken as its recipe leaves it: validation chooses nothing, so it is not run on the way.
        return train.Run(network, lesson, recipe, state=state and state["run"]), before

    progress.teacher_started(spec.title, recipe.epochs)
    kept = _checkpoint(spec, split, precision, progress)
    run, seconds = kept.resume(begin, split.train.labels.device)
    if run.done:
        progress.resumed(f"teacher {spec.title}", run.done, recipe.epochs)
    try:
        for record in run:
            seconds += record.seconds
            kept.keep(lambda: {"run": run.state_dict(), "seconds": seconds}, record.seconds)  # noqa: B023
    except TrialError as error:
        raise TeacherError(
            f"the teacher's training must stay finite: {error}",
            remedy="lower lr in [teacher.recipe], or choose another optimizer",
        ) from None
    return seconds


def _kept(path: Path, device: torch.device) -> tuple[dict[str, Tensor], TeacherFacts]:
    state, metadata = files.load_tensors(path, device)
    return state, TeacherFacts(**json.loads(metadata[FACTS]))


def _from_cache(spec: TeacherSpec, split: Split, path: Path, progress: Progress) -> Teacher | None:
    if not path.is_file():
        return None
    try:
        state, facts = _kept(path, split.train.labels.device)
        network = untrained(spec, split)
        networks.load_state(network, state)
        if facts.probe and not _same(_probe(network, split), facts.probe):
            raise ValueError("its code computes something else than when it was kept")
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        progress.warning(
            f"the kept teacher does not fit and is made again ({path}: {' '.join(str(error).split())[:120]})"
        )
        return None
    return Teacher(networks.frozen(network), split.prepare, facts)
