"""What all trials of a study share: data and teacher, opened once, and what is done with them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from optuna import Study
from torch import Tensor, nn

from kdsearch.data import ImageSet, Split
from kdsearch.distil import checkpoint, lesson, teacher
from kdsearch.distil.answers import Answers, ViewAnswers
from kdsearch.distil.checkpoint import Checkpoint
from kdsearch.distil.step import format_for
from kdsearch.distil.teacher import Teacher
from kdsearch.distil.train import Run, State
from kdsearch.errors import KdsearchError
from kdsearch.measure import ONNX, accuracy, checked, cost, hits, onnx
from kdsearch.measure.gate import Gate
from kdsearch.records import (
    AgainstTeacher,
    Config,
    Precision,
    Progress,
    StudyAttr,
    TeacherFacts,
    Timing,
    architecture,
)
from kdsearch.search import failures
from kdsearch.search.plan import Plan
from kdsearch.spec import StudySpec
from kdsearch.system import machine


@dataclass(frozen=True)
class Workshop:
    """What all trials of a study share."""

    spec: StudySpec
    split: Split  # on the device
    teacher: Teacher
    cost: str  # name of a cost (`measure.cost`)
    precision: Precision | None = None  # of convolutions in training; None: the device's default
    begins: ImageSet | None = None  # the first training images, to which the teacher's answers are known already

    @classmethod
    def open(cls, plan: Plan, progress: Progress | None = None, *, cost: str | None = None) -> Workshop:
        """Open data and teacher of a plan; the teacher is trained if it is not cached.

        The cost is "flops" where nothing is timed; None: the plan's.

        Raises:
            TeacherError: the teacher cannot be built, trained or loaded, or is at chance.
        """
        obtained = teacher.obtain(plan.spec.teacher, plan.split, precision=plan.precision.name, progress=progress)
        return cls(plan.spec, plan.split, obtained, cost or plan.cost, plan.precision.name)

    @classmethod
    def rejoin(cls, study: Study, plan: Plan, progress: Progress, *, cost: str | None = None) -> Workshop:
        """Open data and teacher of an existing study (see `open`, `check_teacher`)."""
        workshop = cls.open(plan, progress, cost=cost)
        workshop.check_teacher(study, progress)
        return workshop

    def check_teacher(self, study: Study, progress: Progress) -> None:
        """Refuse a teacher whose code computes something else than the study's did; warn if it was trained again.

        Raises:
            TeacherError: it does, though its weights are the same.
        """
        if StudyAttr.TEACHER not in study.user_attrs:
            return  # no run of the study has begun its trials
        stored = TeacherFacts(**study.user_attrs[StudyAttr.TEACHER])
        changed = teacher.check_same(self.teacher.facts, stored, given=self.spec.teacher.weights is not None)
        if changed is not None:
            progress.warning(changed)

    @property
    def device(self) -> torch.device:
        return self.split.train.labels.device

    @cached_property
    def answers(self) -> Answers | ViewAnswers:
        """The teacher's answers to the training images, or to their views if the students' recipe augments."""
        shown = self.spec.student.recipe.augment
        return self.teacher.answers_to_shown(self.split.train, shown, begins=self.begins)

    @cached_property
    def gate(self) -> Gate:
        """Lock that keeps timings apart from the trainings of this machine's workers, on the timed device."""
        return Gate(timed_on(self.cost, self.device))

    def quiet(self) -> AbstractContextManager[None]:
        """Return a context for a measurement, without trainings or timings beside it; empty for counted operations."""
        return nullcontext() if self.cost == "flops" else self.gate.alone()

    def keep(self, *, now: bool = False, told: Callable[[str], None] = lambda text: None) -> None:
        """Store the teacher's new answers, if there are any; call `told` with one line if they cannot be written.

        A write error must not end a trial, because the answers can be computed again.
        """
        if "answers" in vars(self):
            try:
                self.answers.keep(now=now)
            except (KdsearchError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and failures.broken(error) is None:
                    raise
                told(f"the teacher's answers were not kept: {failures.broken(error) or error}")

    def build(self, config: Config, seed: int) -> nn.Module:
        """Return an untrained student; equal seeds give equal weights on every device."""
        return lesson.build(self.spec.student, config, seed=seed, split=self.split)

    def teach(self, student: nn.Module, config: Config, seed: int, state: State | None = None) -> Run:
        """Return the training of a student as its configuration says, one epoch per step, from the given state on."""
        return lesson.teach(
            student,
            config,
            seed=seed,
            data=self.split.train,
            prepare=self.split.prepare,
            answers=self.answers if lesson.needs_teacher(config) else None,
            student_spec=self.spec.student,
            precision=self.precision,
            mix=lesson.mix_of(self.spec),
            validate=self.validate,
            on_step=lambda step: self.gate.step(),
            state=state,
        )

    def checkpoint(self, config: Config, seed: int, warn: Callable[[str], object]) -> Checkpoint:
        """Return the checkpoint of a student's training, named by all that determines it; it skips short epochs."""
        student = self.spec.student.model_dump(mode="json", exclude={"threads"})
        mix = self.spec.distillation
        name = checkpoint.digest(config, seed, student, mix, self.teacher.facts.answers_name, self.precision)
        return Checkpoint(f"student-{name}", warn, least=checkpoint.SLOW_EPOCH)

    def undivided(self) -> Workshop:
        """Return a workshop that trains on the whole training set; it has no validation images, so it cannot time."""
        return dataclasses.replace(self, split=self.split.undivided(), begins=self.split.train)

    def validate(self, student: nn.Module) -> float:
        """Return the validation accuracy, a fraction; NaN if there are no validation images."""
        return self.glance(student, self.split.validation) if len(self.split.validation) else math.nan

    def glance(self, student: nn.Module, data: ImageSet) -> float:
        """Return the accuracy on images, a fraction: to choose and to compare by, not to report.

        On a CPU it is computed in the precision of training: bfloat16 takes a wide student a third of float32's time
        there, and moves accuracy by about a tenth of a point.
        """
        with format_for(student, self.device, self.precision).choosing(self.device):
            return accuracy(student, data, self.split.prepare)

    def test(self, student: nn.Module) -> float:
        """Return the test accuracy, a fraction."""
        return accuracy(student, self.split.test, self.split.prepare)

    @cached_property
    def _teacher_hits(self) -> Tensor:
        """Whether the teacher classifies each test image rightly: (test images,), bool."""
        return self.teacher.hits(self.split.test)

    def test_with_teacher(self, student: nn.Module) -> tuple[float, AgainstTeacher]:
        """Return the test accuracy, a fraction, and counts of the test images by who is right."""
        right = hits(student, self.split.test, self.split.prepare)
        counts = (2 * self._teacher_hits.long() + right.long()).bincount(minlength=4).tolist()  # from neither to both
        return right.double().mean().item(), AgainstTeacher(*reversed(counts))

    def timing_key(self, config: Config) -> str:
        return timing_key(config, self.spec, self.cost, self.device)

    def measure(self, student: nn.Module) -> Timing:
        """Take one sitting: the student's inference ratio, with the study's batch size and threads."""
        with machine.threads(self.spec.latency.threads):
            if self.cost == ONNX:
                return onnx.measure(self.teacher.network, student, self.split, self.spec.latency)
            batch = self.split.example(self.spec.latency.batch_on(timed_on(self.cost, self.device).type))
            return checked(cost(self.cost)(self.teacher.network, student, batch), self.cost)


def timed_on(cost: str, device: torch.device) -> torch.device:
    """Return the device that a cost times: the CPU for ONNX Runtime, whatever the device of the trainings."""
    return torch.device("cpu") if cost == ONNX else device


def timing_key(config: Config, spec: StudySpec, cost: str, device: torch.device) -> str:
    """Return the key that two students of a study, trained on `device`, share if they share one timing."""
    key: dict[str, Any] = {"architecture": architecture(config), "cost": cost}
    if cost != "flops":
        timed = timed_on(cost, device)
        key |= {
            "device": machine.device_model(timed),
            "threads": spec.latency.threads if timed.type == "cpu" else None,
            "batch": spec.latency.batch_on(timed.type),
            "precision": machine.float32_arithmetic(timed),
            "torch": torch.__version__,
        }
        if timed.type == "cuda":  # keys of CPUs stay what they were in studies that go on
            key["cudnn"] = torch.backends.cudnn.version()
    if cost == ONNX:
        key["runtime"] = onnx.version()
    return json.dumps(key, sort_keys=True)
