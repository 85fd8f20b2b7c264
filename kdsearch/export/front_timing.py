"""Time the front's students on this machine's CPU, in torch and in ONNX Runtime, untrained: weights do not matter."""

from __future__ import annotations

import dataclasses
import datetime
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from optuna import Study
from optuna.trial import FrozenTrial
from torch import nn

from kdsearch.data import Split, repeated
from kdsearch.distil import lesson, teacher
from kdsearch.export import formats
from kdsearch.measure import latency, onnx
from kdsearch.measure.gate import Gate
from kdsearch.records import Attr, Config, Progress, Timing
from kdsearch.reporting import runtimes
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.formatting import plain
from kdsearch.reporting.measured import HERE, Measured, frame
from kdsearch.search.confirm import choose
from kdsearch.search.plan import rejoin
from kdsearch.search.retrain import check_data
from kdsearch.search.space import architecture_key
from kdsearch.spec import StudySpec
from kdsearch.stats import spread
from kdsearch.system import machine

TORCH, ONNX = "torch", "ONNX Runtime"
SETTING = ("device", "threads", "batch")
FIGURES = ("batch", "ratio", "low", "high", "teacher_seconds", "student_seconds")
SITTINGS = 3  # rounds over all students, so that a student's sittings are apart in time


@dataclass(frozen=True)
class Bench:
    """The teacher and the settings to time students against it in both runtimes."""

    spec: StudySpec
    split: Split  # on the CPU
    teacher: nn.Module  # untrained
    folder: Path  # of the ONNX files, the teacher's too
    gate: Gate  # excludes other timings and trainings on this machine

    def write(self, network: nn.Module, name: str) -> Path:
        """Write a network's ONNX file, from bytes to logits, and return its path."""
        path = self.folder / f"{name}.onnx"
        formats.write(network, self.split, "onnx", path, {})
        return path

    def time(self, config: Config, seed: int) -> dict[str, Timing]:
        """Take one sitting of a student in torch, as the search does, and then in ONNX Runtime, as --cost onnx does."""
        how = self.spec.latency
        student = lesson.build(self.spec.student, config, seed=seed, split=self.split)
        path = self.write(student, "student")
        batch = repeated(self.split.validation.images, how.batch)
        takes: dict[str, Callable[[], Timing]] = {
            TORCH: partial(latency.measure, self.teacher, student, self.split.example(how.batch)),
            ONNX: partial(onnx.measure_files, self.folder / "teacher.onnx", path, batch, how),
        }
        found = {}
        for name, take in takes.items():
            with machine.threads(how.threads), self.gate.alone():
                found[name] = take()
        return found


def measure(study: Study, trials: str | None, *, data_dir: str | None, progress: Progress) -> list[Measured]:
    """Time students, equal architectures together, in several sittings; store the results after each and return them.

    Args:
        study: made by kdsearch.
        trials: numbers separated by commas; None: the whole front.
        data_dir: where data sets lie.
        progress: notified of each student.

    Raises:
        KdsearchError: a package is missing, a trial does not exist, or data or teacher differ from the study's.
    """
    onnx.require("kdsearch measure")
    groups = alike(choose(study, trials))
    plan = rejoin(study, url="", data_dir=data_dir, device="cpu")
    check_data(study, plan)
    network = teacher.untrained(plan.spec.teacher, plan.split).eval()
    onnx.check_teacher(network, plan.split, "kdsearch measure", remedy=onnx.REWRITE)
    progress.study_started(0, SITTINGS * len(groups), "timings")
    found: dict[str, Measured] = {}
    taken: Taken = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(plan.spec, plan.split, network, Path(folder), Gate(torch.device("cpu")))
        bench.write(network, "teacher")
        for group in SITTINGS * groups:
            first, attrs = group[0].number, group[0].user_attrs
            progress.trial_started(first, attrs.get(Attr.ANCHOR), attrs[Attr.CONFIG])
            timings = bench.time(attrs[Attr.CONFIG], attrs[Attr.SEED])
            for name, timing in timings.items():
                taken.setdefault((name, first), []).append(timing)
            found |= _kept(study, [group], taken, plan.spec.latency.threads)
            text = ", ".join(f"ratio {timing.ratio:.4g} in {name}" for name, timing in timings.items())
            progress.trial_finished(first, "COMPLETE", text, counted=True)
    found |= _kept(study, groups, taken, plan.spec.latency.threads)  # again: now all sittings show how far they differ
    return list(found.values())


Taken = dict[tuple[str, int], list[Timing]]
"""The sittings of each runtime and student, by the runtime's name and the student's first trial."""


def _kept(study: Study, groups: Sequence[Sequence[FrozenTrial]], taken: Taken, threads: int) -> dict[str, Measured]:
    """Store the ratio of each trial over the sittings so far."""
    pooled = {
        name: spread([timing.ratio for timing in timings] for (other, _), timings in taken.items() if other == name)
        for name in (TORCH, ONNX)
    }
    found = {}
    for group in groups:
        for name in (TORCH, ONNX):
            timing = latency.over_sittings(taken[name, group[0].number], pooled[name])
            for trial in group:
                kept = measured(trial.number, name, timing, threads)
                found[kept.key] = kept
                study.set_user_attr(kept.key, kept.stored())
    return found


def alike(trials: Sequence[FrozenTrial]) -> list[list[FrozenTrial]]:
    """Group trials of equal architecture."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        groups.setdefault(architecture_key(trial.user_attrs[Attr.CONFIG]), []).append(trial)
    return list(groups.values())


def result(data: StudyData, found: Sequence[Measured]) -> dict[str, Any]:
    """Return what `kdsearch measure --json` prints: the search's ratios and those that `measure` found, by trial."""
    columns = runtimes.columns(dataclasses.replace(data, measured=frame(found)))
    measured_here = {each.trial for each in found}
    numbers = [number for number in runtimes.numbers(data, columns) if number in measured_here]
    accuracies = dict(zip(data.trials["number"], data.trials["test_accuracy"], strict=True))
    trials = [
        {"trial": number, "test_accuracy": accuracies[number], "ratios": {
            column.title: dict(zip(("ratio", "low", "high"), column.cells[number], strict=True))
            for column in columns if number in column.cells}}
        for number in numbers
    ]  # fmt: skip
    told = {"study": data.name, "cost": data.cost, **{key: getattr(found[0], key) for key in SETTING}}
    told |= {"columns": [column.title for column in columns], "trials": trials}
    plained: dict[str, Any] = plain(
        told | {"sentence": runtimes.sentence(columns, [int(number) for number in data.front["number"]])}
    )
    return plained


def measured(number: int, runtime: str, timing: Timing, threads: int) -> Measured:
    """Convert a timing of this machine to the form that the study stores."""
    return Measured(
        trial=number,
        source=HERE,
        runtime=runtime,
        version=f"torch {torch.__version__}" if runtime == TORCH else onnx.version(),
        device=machine.cpu_model(),
        provider="",
        threads=threads,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{name: getattr(timing, name) for name in FIGURES},
    )
