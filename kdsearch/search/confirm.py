"""Confirmation: the front's students trained again on the whole training set with new seeds.

With a control, each student is also trained without the teacher: same seeds, architecture, epochs, batch size and rate.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from kdsearch import sittings
from kdsearch.distil import precision as precisions
from kdsearch.distil.lesson import needs_teacher
from kdsearch.errors import KdsearchError, StorageError, TrialError
from kdsearch.records import Attr, Config, ConfirmedRun, Progress, StudyAttr, confirmed_runs
from kdsearch.search import weights
from kdsearch.search.definition import check, definition, differences
from kdsearch.search.plan import check_own, rejoin
from kdsearch.search.retrain import find_finished, taught_to
from kdsearch.search.workshop import Workshop
from kdsearch.stats import count_of
from kdsearch.system import machine, signals

MAX_REPEATS = 1000
REPEATS = 5  # default number of runs
MATTERS = ("kdsearch", "torch", "device_model", "threads", "precision")  # of an environment, that affect results


@dataclass(frozen=True)
class Job:
    """One confirmation run to do."""

    trial: FrozenTrial  # complete, with the epoch that validation chose
    repeat: int  # counted from 0
    control: bool = False  # whether the student is trained on labels alone

    @property
    def seed(self) -> int:
        """Seed of this run: the same at every start of the command, and different from those of trials."""
        return machine.derive_seed("confirm", self.trial.user_attrs[Attr.SEED], self.trial.number, self.repeat)

    @property
    def is_shipped(self) -> bool:
        """Whether it is the run whose student is exported: the first, so that no test accuracy chooses it."""
        return self.repeat == 0 and not self.control

    @property
    def key(self) -> str:
        """Name of the study attribute that holds the trial's runs."""
        return f"{StudyAttr.CONTROL if self.control else StudyAttr.CONFIRMED}{self.trial.number}"

    @property
    def config(self) -> Config:
        """The student's configuration, without the teacher for a control."""
        config: Config = self.trial.user_attrs[Attr.CONFIG]
        return labels_only(config) if self.control else config


def to_ship(study: Study, trial: FrozenTrial) -> tuple[int, weights.Reference] | None:
    """Return seed and kept weights of a confirmed trial's run to export; None if the trial has no such run."""
    first = Job(trial, 0)
    stored = study.user_attrs.get(first.key)
    if all(run.seed != first.seed for run in confirmed_runs(stored)):
        return None
    return first.seed, weights.reference(stored.get("weights") if isinstance(stored, dict) else None)


def labels_only(config: Config) -> Config:
    """Return the same configuration without a teacher."""
    kept = {key: value for key, value in config.items() if key != "temperature"}
    return kept | {"loss_weight": 0.0} | ({"feature_weight": 0.0} if "feature_weight" in kept else {})


def choose(study: Study, text: str | None = None, *, band: bool = False) -> list[FrozenTrial]:
    """Return the trials to confirm or to measure, by number.

    Args:
        study: made by kdsearch.
        text: trial numbers separated by commas; None: the whole front, by the ratios over all sittings.
        band: whether the whole front includes trials within noise of it (`near_front`).

    Raises:
        KdsearchError: the text is not such a list, a trial cannot be confirmed, or there is no front.
    """
    check_own(study)
    if text is None:
        numbers = near_front(study) if band else {trial.number for trial in _front(study)[0]}
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


def _front(study: Study) -> tuple[list[FrozenTrial], dict[str, sittings.Ratio]]:
    """Return the front by the ratios over all sittings, and these, by timing key."""
    trials = study.get_trials(deepcopy=False)
    timed = sittings.ratios(sittings.by_architecture(trials, study.user_attrs))
    return sittings.front(trials, timed), timed


def near_front(study: Study) -> set[int]:
    """Return the numbers of trials on the front or within the validation noise of it.

    A trial is near the front if no trial that is at least as fast is more than a standard error of its validation
    accuracy ahead: the one-standard-error rule of Breiman, Friedman, Olshen and Stone, Classification and Regression
    Trees (1984).
    If the number of validation images cannot be derived from the accuracies, this is the front alone.
    """
    front, timed = _front(study)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    images = count_of(trial.values[0] for trial in complete)
    numbers = {trial.number for trial in front}
    if not images:
        return numbers
    for trial in complete:
        as_fast = (other for other in front if sittings.ratio_of(other, timed) >= sittings.ratio_of(trial, timed))
        ahead = max((other.values[0] for other in as_fast), default=-math.inf)
        error = math.sqrt(max(0.0, ahead * (1 - ahead)) / images)
        if ahead - trial.values[0] <= error and isinstance(trial.user_attrs.get(Attr.BEST_EPOCH), int):
            numbers.add(trial.number)
    return numbers


def missing(study: Study, trials: Sequence[FrozenTrial], repeats: int, *, control: bool = False) -> list[Job]:
    """Return the runs that the study does not hold yet, repeat by repeat over all trials, each followed by its control.

    A student trained on labels alone is its own control.
    """
    attrs = study.user_attrs
    jobs = [
        job
        for repeat in range(repeats)
        for trial in trials
        for job in (Job(trial, repeat), Job(trial, repeat, control=True))
        if not job.control or (control and needs_teacher(trial.user_attrs[Attr.CONFIG]))
    ]
    there = {job.key: {run.seed for run in confirmed_runs(attrs.get(job.key))} for job in jobs}
    return [job for job in jobs if job.seed not in there[job.key]]


def confirm(
    study: Study,
    trials: Sequence[FrozenTrial],
    *,
    repeats: int | None = None,
    control: bool = False,
    data_dir: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    url: str = "",
    command: str = "",
    progress: Progress | None = None,
) -> None:
    """Train students again and store each run with the study as soon as it is complete; resumes where it stopped.

    The weights of each student's first run are kept, and exported in place of the search's: they are what the figures
    of the confirmation describe.

    A run trains on training and validation images together, to the epoch that the search chose, with a seed of its own.
    The test set is scored after that epoch only, and the ratio is timed anew.

    Args:
        study: made by kdsearch.
        trials: from `choose`.
        repeats: runs per trial that the study is to hold; None: as many as confirmation began with, else 5. The number
            is stored with the study when the first run begins, and later increases are, too.
        control: whether each student is also trained without the teacher.
        data_dir, device: see `optimize`.
        precision: of convolutions in training; "auto": the study's.
        url: of the study's storage, beside which weights are kept; "": none are.
        command: command line to store with the runs.
        progress: receives the events.

    Raises:
        KdsearchError: the data or the teacher are not the study's or, if time is measured, the device is not.
    """
    progress = progress or Progress()
    planned = study.user_attrs.get(StudyAttr.REPEATS) or []
    repeats = max(planned or [REPEATS]) if repeats is None else repeats
    if not 1 <= repeats <= MAX_REPEATS:
        raise KdsearchError(
            f"--repeats must lie between 1 and {MAX_REPEATS}", got=repeats, remedy="give a number in that range"
        )
    todo = missing(study, trials, repeats, control=control)
    taught = [trial for trial in trials if control and needs_teacher(trial.user_attrs[Attr.CONFIG])]
    total = (len(trials) + len(taught)) * repeats
    if not todo:
        return
    plan = rejoin(study, url="", data_dir=data_dir, device=device, precision=precision)
    remedy = "confirm with the study's data and teacher and on its device (studies of --cost flops take any device)"
    own = study.user_attrs[StudyAttr.DEFINITION].get("precision")  # may differ from the runs' own, which they store
    check(study, definition(plan) | {"precision": own}, remedy=remedy)
    for note in precisions.warnings(plan.precision, plan.device):
        progress.warning(note)
    environment = machine.environment(plan.device) | {"precision": plan.precision.name}
    for key, number in {job.key: job.trial.number for job in todo}.items():
        if changes := _changes(study.user_attrs.get(key), environment):
            progress.warning(f"trial {number}: earlier runs are kept, of other versions ({'; '.join(changes)})")
    workshop = Workshop.rejoin(study, plan, progress)
    about = {"environment": environment, "command": command}
    _fix(study, planned, repeats, progress)
    place = weights.folder(url, study.study_name) if url else None
    _run_all(study, todo, (workshop, workshop.undivided()), about, total, place, progress)


def _fix(study: Study, planned: list[int], repeats: int, progress: Progress) -> None:
    """Store with the study the number of repeats planned before any was seen, and later increases."""
    if planned and repeats > max(planned):
        progress.warning(f"confirmation was begun with {planned[0]} repeats and is raised to {repeats}: reports say so")
    if planned and repeats < max(planned):
        progress.warning(f"confirmation was begun for {max(planned)} repeats: {repeats} leave it unfinished")
    if not planned or repeats > max(planned):
        study.set_user_attr(StudyAttr.REPEATS, [*planned, repeats])


def _run_all(
    study: Study,
    todo: Sequence[Job],
    workshops: tuple[Workshop, Workshop],
    about: dict[str, Any],
    total: int,
    place: Path | None,
    progress: Progress,
) -> None:
    progress.study_started(total - len(todo), total, "runs")
    try:
        for job in todo:
            number = job.trial.number
            name = f"repeat {job.repeat + 1}" + (", labels alone" if job.control else "")
            progress.trial_started(number, name, job.config)
            run, student = _run(study, job, *workshops, progress)
            found = dict(about)
            if place is not None and job.is_shipped:
                try:
                    found["weights"] = weights.keep(place, f"confirmed-{number}", student.state_dict(), job.config)
                except KdsearchError as error:
                    progress.warning(f"the weights of trial {number} were not kept: {error}")
            with signals.shield():
                _keep(study, job, run, found)
            text = f"test accuracy {run.test_accuracy:.2%}, ratio {run.ratio:.4g}, {run.seconds:.1f} s"
            progress.trial_finished(number, "COMPLETE", text, counted=True)
    finally:
        workshops[1].keep(now=True, told=progress.warning)


def _run(
    study: Study, job: Job, divided: Workshop, whole: Workshop, progress: Progress
) -> tuple[ConfirmedRun, nn.Module]:
    """Time a student before its training, as the search does; then train and score it; return it, too.

    A control takes the ratio of its pair: the same network with other weights.
    """
    config, last = job.config, job.trial.user_attrs[Attr.BEST_EPOCH]
    known = confirmed_runs(study.user_attrs.get(Job(job.trial, job.repeat).key)) if job.control else []
    pair = next((run for run in known if run.seed == job.seed), None)
    if pair is None:
        with divided.quiet():
            timing = divided.measure(divided.build(config, job.seed))
        ratio = timing.ratio, timing.low, timing.high
    else:
        ratio = pair.ratio, pair.ratio_low, pair.ratio_high
    on_epoch = partial(progress.trial_epoch, job.trial.number, epochs=last)
    try:
        with whole.gate.working():
            student, seconds = taught_to(whole, config, job.seed, last=last, on_epoch=on_epoch)
            test, counts = whole.test_with_teacher(student)
    except TrialError as error:
        raise KdsearchError(
            f"the training of trial {job.trial.number} must stay finite: {error}", remedy="leave it out with --trials"
        ) from None
    return ConfirmedRun(job.seed, test, *ratio, seconds, counts), student


def _keep(study: Study, job: Job, run: ConfirmedRun, about: dict[str, Any]) -> None:
    """Add a run to those that the study holds now, as another process may have added some meanwhile."""
    before = study.user_attrs.get(job.key)
    runs = [*confirmed_runs(before), run]
    changes = _changes(before, about["environment"])
    before = before if isinstance(before, dict) else {}
    stored = {
        **({"weights": before["weights"]} if "weights" in before else {}),
        "trial": job.trial.number,
        "epochs": job.trial.user_attrs[Attr.BEST_EPOCH],
        "runs": [each.stored() for each in runs],
        **about,
        "changes": [*before.get("changes", []), *changes],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    study.set_user_attr(job.key, stored)


def _changes(before: object, environment: dict[str, Any]) -> list[str]:
    """Return lines `torch: 2.1 -> 2.2` for differences between the environment of earlier runs and this one."""
    old = before.get("environment") if isinstance(before, dict) and confirmed_runs(before) else None
    if not isinstance(old, dict):
        return []
    old = {"precision": environment.get("precision"), **old}  # not stored by earlier versions
    return differences({key: old.get(key) for key in MATTERS}, {key: environment.get(key) for key in MATTERS})
