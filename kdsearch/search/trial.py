"""One trial: a configuration, its ratio before training, its epochs, its best checkpoint."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from optuna import Study, Trial, TrialPruned
from optuna.trial import TrialState
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.data import Split
from kdsearch.distil import lesson
from kdsearch.distil.answers import Answers
from kdsearch.distil.teacher import Teacher
from kdsearch.distil.view_answers import ViewAnswers
from kdsearch.errors import KdsearchError
from kdsearch.measure import ONNX, accuracy, checked, cost, deployed, hits, latency
from kdsearch.measure.gate import Gate
from kdsearch.progress import Progress
from kdsearch.pruning import pruner
from kdsearch.records import AgainstTeacher, Attr, Config, EpochRecord, Timing, architecture
from kdsearch.search import failures, space
from kdsearch.search.clock import REST, Clock
from kdsearch.search.weights import Keeper
from kdsearch.spec import StudySpec
from kdsearch.system import machine

MAX_REFUSED_IN_A_ROW = 100  # by the pruner, before training; the next one is trained: a study comes to its end


@dataclass(frozen=True)
class Workshop:
    """All that a trial needs and no trial changes.

    Attributes:
        spec: the study file.
        split: data on the device.
        teacher: frozen.
        cost: name of a cost (`measure.cost`).
    """

    spec: StudySpec
    split: Split
    teacher: Teacher
    cost: str

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.split.train.labels.device

    @cached_property
    def answers(self) -> Answers | ViewAnswers:
        """The teacher's answers to the training images, or to their views where the students' recipe augments."""
        return self.teacher.answers_to_shown(self.split.train, self.spec.student.recipe.augment)

    @property
    def timed_on(self) -> torch.device:
        """What a ratio is of: ONNX Runtime runs on the CPU here, wherever students are trained."""
        return torch.device("cpu") if self.cost == ONNX else self.device

    @cached_property
    def gate(self) -> Gate:
        """Keeps the timings of this machine's workers from their trainings, on the device that is timed."""
        return Gate(self.timed_on)

    def quiet(self) -> AbstractContextManager[None]:
        """Runs its body, a measurement, while nobody else of us trains or times; counting operations needs no quiet."""
        return nullcontext() if self.cost == "flops" else self.gate.alone()

    def keep(self, *, now: bool = False, told: Callable[[str], None] = lambda text: None) -> None:
        """Keeps what the teacher was asked, if it was asked anything new; where it cannot, `told` is told, once a time.

        What a student reached is worth more than answers that can be asked for again.
        """
        if "answers" in vars(self):
            try:
                self.answers.keep(now=now)
            except KdsearchError as error:
                told(f"the teacher's answers were not kept: {error}")

    def build(self, config: Config, seed: int) -> nn.Module:
        """An untrained student; the same seed gives the same weights on every device."""
        return lesson.build(self.spec.student, config, seed=seed, split=self.split)

    def teach(self, student: nn.Module, config: Config, seed: int) -> Iterator[EpochRecord]:
        """Trains a student as its configuration says, an epoch a step of the iterator."""
        return lesson.teach(
            student,
            config,
            seed=seed,
            data=self.split.train,
            prepare=self.split.prepare,
            answers=self.answers if lesson.needs_teacher(config) else None,
            student_spec=self.spec.student,
            mix=lesson.mix_of(self.spec),
            validate=self.validate,
            on_step=lambda step: self.gate.step(),
        )

    def undivided(self) -> Workshop:
        """A workshop of the same study that teaches on the whole training set; it times nothing, for want of images."""
        return dataclasses.replace(self, split=self.split.undivided())

    def validate(self, student: nn.Module) -> float:
        """Validation accuracy, a fraction; NaN where no images were held back for it."""
        held = self.split.validation
        return accuracy(student, held, self.split.prepare) if len(held) else math.nan

    def test(self, student: nn.Module) -> float:
        """Test accuracy, a fraction."""
        return accuracy(student, self.split.test, self.split.prepare)

    @cached_property
    def _teacher_hits(self) -> Tensor:
        """(test images,), bool: whether the teacher is right; asked once a process."""
        return hits(self.teacher.network, self.split.test, self.teacher.prepare)

    def test_with_teacher(self, student: nn.Module) -> tuple[float, AgainstTeacher]:
        """Test accuracy, a fraction, and the test images by who is right."""
        right = hits(student, self.split.test, self.split.prepare)
        counts = (2 * self._teacher_hits.long() + right.long()).bincount(minlength=4).tolist()  # neither to both
        return right.double().mean().item(), AgainstTeacher(*reversed(counts))

    def timing_key(self, config: Config) -> str:
        """What two students must share to share one timing."""
        key: dict[str, Any] = {"architecture": architecture(config), "cost": self.cost}
        if self.cost != "flops":
            key |= {
                "device": machine.device_model(self.timed_on),
                "threads": self.spec.latency.threads if self.timed_on.type == "cpu" else None,
                "batch": self.spec.latency.batch,
                "precision": "float32",
                "torch": torch.__version__,
            }
        if self.cost == ONNX:
            key["runtime"] = deployed.version()
        return json.dumps(key, sort_keys=True)

    def measure(self, student: nn.Module) -> Timing:
        """The student's inference ratio, on a batch and with the threads that the study says.

        One whose interval is wide is taken again, a few times, and the narrowest is kept: before it is stored, whatever
        the ratio. A timing that is stored stands.
        """

        def take() -> Timing:
            if self.cost == ONNX:
                return deployed.measure(self.teacher.network, student, self.split, self.spec.latency)
            batch = self.split.example(self.spec.latency.batch)
            return checked(cost(self.cost)(self.teacher.network, student, batch), self.cost)

        with machine.threads(self.spec.latency.threads):
            return latency.steady(take)


@dataclass
class Best:
    """The best validated checkpoint so far: the first epoch that reached the highest accuracy."""

    accuracy: float = -1.0
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, record: EpochRecord, student: nn.Module) -> None:
        """Keeps the student's weights if they are better than any before."""
        if record.accuracy > self.accuracy:
            self.accuracy, self.epoch = record.accuracy, record.epoch
            self.weights = copy.deepcopy(student.state_dict())


class Objective:
    """A trial of the study, as Optuna calls it: returns (validation accuracy, inference ratio).

    Args:
        workshop: what all trials share.
        seed: of the study; each trial trains with a seed from (seed, trial number). None: a fresh one each.
        progress: told of epochs.
        cut: asked after each epoch why the trial has to end now, for a budget is spent; None: it may go on.
        clock: counts where the time goes; None: one of its own.
        keeper: keeps the weights of trials on the front; None: nobody does.
    """

    def __init__(
        self,
        workshop: Workshop,
        *,
        seed: int | None,
        progress: Progress,
        cut: Callable[[Trial], str | None] = lambda trial: None,
        clock: Clock | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self._keeper = keeper
        self._workshop = workshop
        self._seed = seed
        self._progress = progress
        self._cut = cut
        self._clock = clock or Clock()
        self.number = -1  # of the trial that ran last

    def __call__(self, trial: Trial) -> tuple[float, float]:
        """Runs the trial; a reason is stored before any error goes on.

        Raises:
            TrialPruned: the pruner called it hopeless.
        """
        self.number = trial.number
        try:
            return self._run(trial)
        except TrialPruned:
            raise
        except Exception as error:
            failures.note(trial, error)
            raise

    def _run(self, trial: Trial) -> tuple[float, float]:
        workshop = self._workshop
        config = space.suggest(trial, workshop.spec.space)
        seed = machine.fresh_seed() if self._seed is None else machine.derive_seed("trial", self._seed, trial.number)
        self._progress.trial_started(trial.number, trial.user_attrs.get(Attr.ANCHOR), config)
        trial.set_user_attr(Attr.CONFIG, config)
        trial.set_user_attr(Attr.SEED, seed)
        failures.refuse(trial, config)
        student = workshop.build(config, seed)
        trial.set_user_attr(Attr.PARAMETERS, networks.parameters(student))
        trial.set_user_attr(Attr.BYTES, networks.size_bytes(student))
        timing = self._time(trial, student, config)
        pruner.report(trial, (None, timing.ratio), 0)
        if refused_in_a_row(trial) < MAX_REFUSED_IN_A_ROW and self._hopeless(trial):
            raise TrialPruned  # before its first epoch
        best = Best()
        with workshop.gate.working():
            hopeless = self._train(trial, student, config, seed, timing.ratio, best)
            student.load_state_dict(best.weights)
            with self._clock.spent_on("scoring"):
                test, counts = workshop.test_with_teacher(student)
        trial.set_user_attr(Attr.TEST_ACCURACY, test)
        trial.set_user_attr(Attr.AGAINST_TEACHER, counts.stored())
        workshop.keep(told=self._progress.warning)
        if hopeless:
            raise TrialPruned
        if self._keeper is not None:
            self._keeper.sweep(trial.study)
            self._keeper.keep(trial, best.weights, (best.accuracy, timing.ratio))
        return best.accuracy, timing.ratio

    def _time(self, trial: Trial, student: nn.Module, config: Config) -> Timing:
        """The ratio: that of the first trial of this architecture, else measured now."""
        workshop = self._workshop
        key = workshop.timing_key(config)
        timing = known_timing(trial.study, key)
        if timing is None:
            with self._clock.spent_on("timing"), workshop.quiet():
                # others wait meanwhile, and one of them may have timed this architecture while we did
                timing = known_timing(trial.study, key) or workshop.measure(student)
                self._keep(trial, key, timing)
        else:
            self._keep(trial, key, timing)
        return timing

    def _keep(self, trial: Trial, key: str, timing: Timing) -> None:
        trial.set_user_attr(Attr.TIMING, dataclasses.asdict(timing))
        trial.set_user_attr(Attr.TIMING_KEY, key)
        for name, value in {
            Attr.RATIO: timing.ratio,
            Attr.RATIO_LOW: timing.low,
            Attr.RATIO_HIGH: timing.high,
        }.items():
            trial.set_user_attr(name, value)

    def _train(self, trial: Trial, student: nn.Module, config: Config, seed: int, ratio: float, best: Best) -> bool:
        """Trains to the end, until the trial is hopeless, which it returns, or until more epochs are not wanted."""
        losses: list[float] = []
        seconds = 0.0
        hopeless = False
        for record in self._epochs(student, config, seed):
            losses.append(record.loss)
            seconds += record.seconds
            best.see(record, student)
            pruner.report(trial, (record.accuracy, ratio), record.epoch)
            self._progress.trial_epoch(trial.number, record, config["epochs"])
            hopeless = record.epoch < config["epochs"] and self._hopeless(trial)
            if hopeless or (record.epoch < config["epochs"] and self._ends(trial, record.epoch)):
                break
        trial.set_user_attr(Attr.LOSSES, losses)
        trial.set_user_attr(Attr.TRAIN_SECONDS, seconds)
        trial.set_user_attr(Attr.ACCURACY, best.accuracy)
        trial.set_user_attr(Attr.BEST_EPOCH, best.epoch)
        return hopeless

    def _epochs(self, student: nn.Module, config: Config, seed: int) -> Iterator[EpochRecord]:
        """The epochs of a training, their time counted: what is not training is scoring the validation set."""
        records = self._workshop.teach(student, config, seed)
        gate = self._workshop.gate
        while True:
            before, paused = self._clock.seconds["training"], gate.paused
            with self._clock.spent_on("training"):
                record = next(records, None)
            if record is None:
                return
            waited = gate.paused - paused
            self._clock.move(waited, "training", REST)
            record = dataclasses.replace(record, seconds=record.seconds - waited)
            self._clock.move(self._clock.seconds["training"] - before - record.seconds, "training", "scoring")
            yield record

    def _hopeless(self, trial: Trial) -> bool:
        with self._clock.spent_on("search"):
            return pruner.should_prune(trial)

    def _ends(self, trial: Trial, epoch: int) -> bool:
        """Whether the trial, which is not hopeless, ends here with its best checkpoint; it then holds why."""
        with self._clock.spent_on("search"):
            stop = pruner.should_stop(trial)
        if stop:
            return True
        reason = self._cut(trial)
        if reason is not None:
            trial.set_user_attr(Attr.STOPPED_AT, epoch)
            trial.set_user_attr(Attr.STOPPED_BY, {"step": epoch, "reason": reason})
        return reason is not None


def refused_in_a_row(trial: Trial) -> int:
    """How many trials just before this one were pruned before their first epoch."""
    count = 0
    for other in reversed(trial.study.get_trials(deepcopy=False)[: trial.number]):
        if other.state in (TrialState.RUNNING, TrialState.WAITING):
            continue  # another worker's
        if other.state != TrialState.PRUNED or set(other.user_attrs.get(Attr.CURVE, {})) - {"0"}:
            break
        count += 1
    return count


def known_timing(study: Study, key: str) -> Timing | None:
    """The timing that the first trial with this key stored, or None: the first one written stands."""
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get(Attr.TIMING_KEY) == key:
            return Timing(**trial.user_attrs[Attr.TIMING])
    return None
