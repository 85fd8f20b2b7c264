"""The front's students trained again on the whole training set, with new seeds: what a search's choice is worth."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from kdsearch.distil import teacher
from kdsearch.errors import KdsearchError, StorageError, TrialError
from kdsearch.progress import Progress
from kdsearch.records import Attr, ConfirmedRun, StudyAttr, confirmed_runs
from kdsearch.search.definition import check, definition, differences
from kdsearch.search.plan import check_own, rejoin
from kdsearch.search.retrain import find_finished, taught_to
from kdsearch.search.trial import Workshop
from kdsearch.system import machine, signals

MAX_REPEATS = 1000
MATTERS = ("kdsearch", "torch", "device_model", "threads")  # of an environment, to accuracies and ratios


@dataclass(frozen=True)
class Job:
    """One run to do.

    Attributes:
        trial: complete, with the epoch that validation chose.
        repeat: counted from 0; it decides the seed.
    """

    trial: FrozenTrial
    repeat: int

    @property
    def seed(self) -> int:
        """Of this run: the same at every start of the command, and no trial's."""
        return machine.derive_seed("confirm", self.trial.user_attrs[Attr.SEED], self.trial.number, self.repeat)

    @property
    def key(self) -> str:
        """The study's attribute that keeps the trial's runs."""
        return f"{StudyAttr.CONFIRMED}{self.trial.number}"


def choose(study: Study, text: str | None = None) -> list[FrozenTrial]:
    """The trials to confirm or to measure, by number.

    Args:
        study: made by kdsearch.
        text: numbers with commas between; None: the whole front.

    Raises:
        KdsearchError: the text is no such list, a trial cannot be confirmed, or there is no front.
    """
    check_own(study)
    if text is None:
        numbers = {trial.number for trial in study.best_trials}
        if not numbers:
            raise StorageError(
                "the study must have a front: a complete trial at least",
                got=study.study_name,
                remedy="run `kdsearch optimize` first",
            )
    else:
        words = [word.strip() for word in text.split(",")]
        if not all(word.isascii() and word.isdigit() for word in words):
            raise KdsearchError("--trials must be numbers with commas between", got=text, remedy="write it as 3,7,9")
        numbers = set(map(int, words))
    return [find_finished(study, number) for number in sorted(numbers)]


def missing(study: Study, trials: Sequence[FrozenTrial], repeats: int) -> list[Job]:
    """The runs that the study does not hold yet, all trials of a repeat before the next one."""
    attrs = study.user_attrs
    jobs = [Job(trial, repeat) for repeat in range(repeats) for trial in trials]
    there = {job.key: {run.seed for run in confirmed_runs(attrs.get(job.key))} for job in jobs}
    return [job for job in jobs if job.seed not in there[job.key]]


def confirm(
    study: Study,
    trials: Sequence[FrozenTrial],
    *,
    repeats: int = 5,
    data_dir: str | None = None,
    device: str = "auto",
    command: str = "",
    progress: Progress | None = None,
) -> None:
    """Trains students again and keeps each run with the study as soon as it is whole; goes on where it stopped.

    A run trains on training and validation images together, to the epoch that the search chose, with a seed of its
    own; the test set is scored after that epoch alone, and the ratio is timed anew.

    Args:
        study: made by kdsearch.
        trials: of `choose`.
        repeats: runs of each that the study is to hold.
        data_dir: where data sets lie.
        device: as of `optimize`.
        command: to keep with the runs.
        progress: told of each.

    Raises:
        KdsearchError: the data, the teacher or, where time is measured, the device are not the study's.
    """
    progress = progress or Progress()
    if not 1 <= repeats <= MAX_REPEATS:
        raise KdsearchError(f"--repeats must lie between 1 and {MAX_REPEATS}", got=repeats, remedy="correct it")
    todo = missing(study, trials, repeats)
    total = len(trials) * repeats
    if not todo:
        return
    plan = rejoin(study, url="", data_dir=data_dir, device=device)
    remedy = "confirm with the study's data and teacher and on its device (studies of --cost flops take any device)"
    check(study, definition(plan), remedy=remedy)
    environment = machine.environment(plan.device)
    for job in {job.key: job for job in todo}.values():
        _warn_of_changes(study, job, environment, progress)
    known = teacher.obtain(plan.spec.teacher, plan.split, progress=progress)
    workshop = Workshop(plan.spec, plan.split, known, plan.cost)
    about = {"environment": environment, "command": command}
    _run_all(study, todo, (workshop, workshop.undivided()), about, total, progress)


def _run_all(
    study: Study,
    todo: Sequence[Job],
    workshops: tuple[Workshop, Workshop],
    about: dict[str, Any],
    total: int,
    progress: Progress,
) -> None:
    progress.study_started(total - len(todo), total, "runs")
    try:
        for job in todo:
            number, config = job.trial.number, job.trial.user_attrs[Attr.CONFIG]
            progress.trial_started(number, f"repeat {job.repeat + 1}", config)
            run = _run(job, *workshops, progress)
            with signals.shield():
                _keep(study, job, run, about)
            text = f"test accuracy {run.test_accuracy:.2%}, ratio {run.ratio:.4g}, {run.seconds:.1f} s"
            progress.trial_finished(number, "COMPLETE", text, counted=True)
    finally:
        workshops[1].keep(now=True, told=progress.warning)


def _run(job: Job, divided: Workshop, whole: Workshop, progress: Progress) -> ConfirmedRun:
    """One student timed, as the search times: before its training; then taught and scored."""
    attrs = job.trial.user_attrs
    config, last = attrs[Attr.CONFIG], attrs[Attr.BEST_EPOCH]
    with divided.quiet():
        timing = divided.measure(divided.build(config, job.seed))
    on_epoch = partial(progress.trial_epoch, job.trial.number, epochs=last)
    try:
        with whole.gate.working():
            student, seconds = taught_to(whole, config, job.seed, last=last, on_epoch=on_epoch)
            test = whole.test(student)
    except TrialError as error:
        raise KdsearchError(
            f"the training of trial {job.trial.number} must stay finite: {error}", remedy="leave it out with --trials"
        ) from None
    return ConfirmedRun(job.seed, test, timing.ratio, timing.low, timing.high, seconds)


def _keep(study: Study, job: Job, run: ConfirmedRun, about: dict[str, Any]) -> None:
    """Adds a run to those that the study holds now: another process may have added some meanwhile."""
    before = study.user_attrs.get(job.key)
    runs = [*confirmed_runs(before), run]
    changes = _changes(before, about["environment"])
    told = before.get("changes", []) if isinstance(before, dict) else []
    stored = {
        "trial": job.trial.number,
        "epochs": job.trial.user_attrs[Attr.BEST_EPOCH],
        "runs": [dataclasses.asdict(each) for each in runs],
        **about,
        "changes": [*told, *changes],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    study.set_user_attr(job.key, stored)


def _changes(before: object, environment: dict[str, Any]) -> list[str]:
    """What differs between the environment of the runs that are there and this one, as lines `torch: 2.1 -> 2.2`."""
    old = before.get("environment") if isinstance(before, dict) and confirmed_runs(before) else None
    if not isinstance(old, dict):
        return []
    return differences({key: old.get(key) for key in MATTERS}, {key: environment.get(key) for key in MATTERS})


def _warn_of_changes(study: Study, job: Job, environment: dict[str, Any], progress: Progress) -> None:
    changes = _changes(study.user_attrs.get(job.key), environment)
    if changes:
        progress.warning(f"trial {job.trial.number}: earlier runs are kept, of other versions ({'; '.join(changes)})")
