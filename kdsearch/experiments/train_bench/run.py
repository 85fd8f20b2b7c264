"""Our epoch loop against a plain one, in turn on the deck's rows: images a second, and the ceiling."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from kdsearch import data, spec
from kdsearch.distil import precision as precisions
from kdsearch.errors import KdsearchError
from kdsearch.experiments.slides.deck import DATASETS, Dataset, School, Settings, rows
from kdsearch.experiments.train_bench import loops
from kdsearch.experiments.train_bench.loops import SEED, Agreement
from kdsearch.records import Precision, Progress
from kdsearch.stats import median_interval
from kdsearch.system import machine

STEPS: dict[tuple[str, Dataset], int] = {
    ("cpu", "cifar10"): 4,
    ("cpu", "mnist"): 300,
    ("cuda", "cifar10"): 100,
    ("cuda", "mnist"): 500,
}  # of a sample: long enough to amortise the start of an epoch, short enough for all samples

WARM_UPS = 2  # rounds that do not count: on a CPU ours took twice its time in the second one
QUIET = 0.5  # largest load average of an idle machine


@dataclass(frozen=True)
class Options:
    """The rows to measure, and how."""

    names: Sequence[str]  # of the deck's rows
    device: str = "auto"
    data_dir: str | None = None
    steps: int | None = None  # of a sample; None: `STEPS`
    samples: int = 7  # rounds that count, after `WARM_UPS`
    batch: int | None = None  # images a step; None: the row's
    workers: int | None = None  # of the plain loop's loader; None: one for two cores
    precision: str = "auto"  # of our convolutions: "float32", "bfloat16" or "auto", as in `optimize`


@dataclass(frozen=True)
class Measured:
    """The measurements of the row `name`.

    Attributes:
        batch, steps: images a step, steps a sample.
        threads: of both loops, on a CPU.
        workers: of the plain loop.
        seconds: a step, of each round: "ours", "plain", "student" (a step on tensors that are ready) and, where the
            plain loop asks it, "teacher" (a forward pass); "float32", ours in that, where ours is in bfloat16 on a CPU.
        agreement: of both loops.
        precision: of our convolutions.
    """

    name: str
    dataset: Dataset
    batch: int
    steps: int
    threads: tuple[int, int]
    workers: int
    seconds: Mapping[str, Sequence[float]]
    agreement: Agreement
    precision: Precision = "float32"

    def images_a_second(self, which: str) -> float:
        """Return the median of "ours", of "plain" or of "float32"."""
        return self.batch / statistics.median(self.seconds[which])

    def rounds_over(self, other: str, which: str) -> list[float]:
        """Return the quotients of the seconds of two parts, round by round."""
        return [a / b for a, b in zip(self.seconds[other], self.seconds[which], strict=True)]

    @cached_property
    def speedup(self) -> tuple[float, float, float]:
        """Plain over ours: median and its 95 % interval."""
        return median_interval(self.rounds_over("plain", "ours"))

    @property
    def against_float32(self) -> tuple[float, float, float] | None:
        """Ours in float32 over ours in bfloat16: median and 95 % interval; None where ours is in float32."""
        return median_interval(self.rounds_over("float32", "ours")) if "float32" in self.seconds else None

    @property
    def ceiling(self) -> float:
        """The speed-up of a loop that does nothing but the student's bare steps.

        (teacher + student) / student where the plain loop asks the teacher, else plain / student.
        """
        if "teacher" not in self.seconds:
            return statistics.median(self.rounds_over("plain", "student"))
        pairs = zip(self.seconds["teacher"], self.seconds["student"], strict=True)
        return statistics.median((teacher + student) / student for teacher, student in pairs)


def choose(names: Sequence[str]) -> dict[str, tuple[Dataset, Settings]]:
    """Return the rows of these names, as the deck states them, with all training images.

    Raises:
        KdsearchError: a row is unknown, or trained in int8.
    """
    known = {
        name: (dataset, replace(row.readings["stated"], per_class=None))
        for dataset in DATASETS
        for name, row in rows(dataset).items()
        if row.readings["stated"].bits is None
    }
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise KdsearchError(
            "--rows must name rows of the slides that train in float",
            got=", ".join(unknown) or "none",
            remedy=f"choose among {','.join(known)}",
        )
    return {name: known[name] for name in names}


def load() -> float | None:
    """Return the load average of the last minute; None where the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def measure(options: Options, progress: Progress | None = None) -> list[Measured]:
    """Measure each row once.

    Raises:
        KdsearchError: a row or the device is unknown, data are missing or too few, or the loops do not agree.
    """
    progress = progress or Progress()
    chosen = choose(options.names)
    precisions.check(options.precision)
    device = machine.resolve_device(options.device)
    if (load() or 0.0) > QUIET:
        progress.warning(
            f"other work runs on this machine (load average {load():.1f}): wait for it, or trust no figure"
        )
    if device.type == "cpu":
        machine.keep_freed_memory()  # our loop requests it for the whole process: set it before all that is timed
    workers = max(1, (os.cpu_count() or 1) // 2) if options.workers is None else options.workers
    found: list[Measured] = []
    read: dict[Dataset, data.Dataset] = {}
    progress.study_started(0, len(chosen))
    for number, (name, (dataset, row)) in enumerate(chosen.items()):
        progress.trial_started(number, name, {})
        if dataset not in read:
            read[dataset] = data.load(spec.DataSpec(name=dataset), machine.data_folder(options.data_dir))
        settings = replace(row, batch_size=options.batch or row.batch_size)
        steps = options.steps or STEPS[device.type, dataset]
        school = loops.open_school(dataset, read[dataset], device, images=steps * settings.batch_size)
        school = replace(school, precision=_precision(options.precision, school, settings))
        one = measure_row(name, school, settings, samples=options.samples, workers=workers)
        found.append(one)
        text = f"ours {one.images_a_second('ours'):,.0f} images/s, {one.speedup[0]:.2f} times the plain loop's"
        progress.trial_finished(number, "COMPLETE", text, counted=True)
    return found


def _precision(wanted: str, school: School, settings: Settings) -> Precision:
    device, family = school.split.train.labels.device, school.deck.student.family
    return precisions.choose(
        wanted, device=device, kind=family, shape=school.split.shape, build=lambda: school.build(settings, SEED)
    ).name


def measure_row(name: str, school: School, settings: Settings, *, samples: int, workers: int) -> Measured:
    """Check that both loops agree, then time them and their parts alternately.

    Args:
        name, settings: of the row.
        school: images, of which an epoch is one sample; teacher; recipe.
        samples: rounds that count, after `WARM_UPS`.
        workers: of the plain loop's loader.

    Raises:
        KdsearchError: the loops do not agree, or a training diverged.
    """
    agreement = loops.check(school, settings)
    device, steps = school.split.train.labels.device, max(1, len(school.split.train) // settings.batch_size)
    student = school.build(settings, SEED)
    calls = loops.calls(school, settings, student, rounds=samples + WARM_UPS, steps=steps, workers=workers)
    seconds: dict[str, list[float]] = {which: [] for which in calls}
    for _ in range(samples + WARM_UPS):
        for which, call in calls.items():
            seconds[which].append(_seconds(call, device) / steps)
    threads = torch.get_num_threads()
    return Measured(
        name=name,
        dataset=school.dataset,
        batch=settings.batch_size,
        steps=steps,
        threads=(school.deck.student.threads or threads, threads),
        workers=workers,
        seconds={which: spent[WARM_UPS:] for which, spent in seconds.items()},
        agreement=agreement,
        precision=precisions.trained_in(student, device, school.precision),
    )


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    machine.synchronize(device)
    begin = time.perf_counter()
    call()
    machine.synchronize(device)
    return time.perf_counter() - begin
