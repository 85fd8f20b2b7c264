"""Read a study from its storage into pandas frames for a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdsearch import pareto, sittings
from kdsearch.errors import StorageError, StudyFileError
from kdsearch.records import METRICS, Attr, ConfirmedRun, StudyAttr, against_teacher
from kdsearch.reporting import confirmation, deck_rows, formatting
from kdsearch.reporting.formatting import number, plain, records
from kdsearch.reporting.measured import is_whole, measurements
from kdsearch.spec import ReportSpec, StudySpec, from_dict
from kdsearch.storage import masked

CONFIG = "config."
"""Prefix of the configuration columns in `StudyData.trials`."""

NUMBERS = (
    "accuracy", "test_accuracy", "ratio", "ratio_low", "ratio_high", "sittings", "microseconds", "microseconds_1",
    "parameters", "bytes", "best_epoch", "epochs_run", "epochs_spent", "train_seconds", "saved",
    "resumes",
)  # fmt: skip
TIMED = ("ratio", "ratio_low", "ratio_high", "sittings", "microseconds", "microseconds_1")
TRIAL_COLUMNS = (
    "number", "state", "anchor", *NUMBERS, "covers", "on_front", "reason", "why", "against_teacher", "finished",
)  # fmt: skip
HISTORY_COLUMNS = ("finished", "trial", "hypervolume", "epochs", "hours")
BELOW_TEACHER = 0.2  # accuracy: a student this far below its teacher adds no hypervolume


@dataclass(frozen=True)
class StudyData:
    """A study as plain data; accuracies are fractions, missing numbers are NaN.

    `trials` has one row a trial, by number. `ratio`, `ratio_low`, `ratio_high` are over all `sittings` of its
    architecture (a trial's value in Optuna is its first one); where `covers` is False the interval is that of one
    sitting. `microseconds` is the student's time an image at the batch that was timed, `microseconds_1` at batch 1.
    `accuracy` is that of the epoch that validation chose, `reason` says why a trial was pruned, stopped early or
    failed, `why` is what was stored of it, `against_teacher` counts test images by which of the two models is right
    (None: not stored), `saved` is how many epochs of its configuration a forecast saved, `epochs_spent` leaves out the
    epochs of its curve that another trial trained, `resumes` is the ended trial that it went on with, `on_front` marks
    non-dominated complete trials, `finished` is a time; columns `config.KEY` hold the configuration.

    `history` has the hypervolume of the complete trials after each finished one, in the order in which they finished:
    number finished, the trial, the hypervolume so far, epochs trained so far by finished trials, hours since the first
    trial began (NaN where a time is missing); it is empty without a floor.
    """

    name: str
    storage: str  # its URL, the password masked
    dataset: str | None  # its name; None where the study does not store it
    cost: str  # what the ratio compares: "latency" (measured time) or "flops" (counted operations)
    command: str | None  # the last command line that ran the study
    counts: dict[str, int]  # by state: complete, pruned, failed, running, waiting, untrained (pruned before an epoch)
    hypervolume: float | None  # of the complete trials, see `pareto.study_hypervolume`; None without a floor
    floor: float | None  # validation accuracy from which hypervolume counts: see `_lowest`
    trials: pd.DataFrame
    curves: pd.DataFrame  # (trial, epoch, validation accuracy), ordered
    anchors: pd.DataFrame  # one row a slide row: see `deck_rows.anchors`
    history: pd.DataFrame
    confirmed: pd.DataFrame  # results of `kdsearch confirm`: see `confirmation.confirmations`
    runs: dict[int, list[ConfirmedRun]]  # its runs by trial
    controls: dict[int, list[ConfirmedRun]]  # those of `--control`, the students trained on labels alone
    repeats: tuple[int, ...]  # number of runs that confirmation was begun with, then what it was raised to
    within: float  # points below the teacher's test accuracy that the study accepts of a student to ship
    measured: pd.DataFrame  # ratios measured outside of the search: see `measured.measurements`
    stored: tuple[FrozenTrial, ...]  # the trials as Optuna has them
    spent: dict[str, float]  # seconds of all runs by kind of work; empty where none has ended
    teacher: dict[str, Any] | None  # TeacherFacts
    environment: dict[str, Any]  # this and the next two as stored with the study, empty where missing
    definition: dict[str, Any]
    study_file: dict[str, Any]
    objectives: tuple[str, str] | None = None  # names of another program's; None in a study of kdsearch

    @property
    def stand_ins(self) -> str:
        """What accuracy and ratio stand for in a study of another program; empty in a study of kdsearch."""
        if self.objectives is None:
            return ""
        first, second = self.objectives
        return f"not a study of kdsearch: accuracy stands for its objective {first}, ratio for its objective {second}"

    @property
    def front(self) -> pd.DataFrame:
        """The rows of `trials` that no other complete trial dominates, by ratio ascending, then by number."""
        return self.trials[self.trials["on_front"].astype(bool)].sort_values(["ratio", "number"])

    @property
    def timed_batch(self) -> int | None:
        """Images a batch in the trials' timings, more on a GPU than on a CPU; None where none is stored."""
        found = (mapping(trial.user_attrs.get(Attr.TIMING)).get("batch") for trial in self.stored)
        return next((batch for batch in found if is_whole(batch, least=1)), None)


def collect(study: optuna.Study, *, storage_url: str) -> StudyData:
    """Read a study into plain data.

    Args:
        study: two maximised objectives, validation accuracy and inference ratio; attributes may be missing.
        storage_url: where the study lies; only its masked form is kept.

    Raises:
        StorageError: the study has other objectives.
    """
    if study.directions != [StudyDirection.MAXIMIZE] * 2:
        raise StorageError(
            "a report needs a study with two maximised objectives, accuracy and ratio",
            got=f"{study.study_name} with {', '.join(d.name.lower() for d in study.directions)}",
            remedy="choose a study that `kdsearch optimize` made",
        )
    found = study.get_trials(deepcopy=False)
    attrs = study.user_attrs
    environment, definition, study_file, teacher = (
        mapping(attrs.get(name))
        for name in (StudyAttr.ENVIRONMENT, StudyAttr.DEFINITION, StudyAttr.STUDY_FILE, StudyAttr.TEACHER)
    )
    spec = _spec(study_file)
    wanted = spec.report if spec else ReportSpec()
    trials = _trials(found, attrs)
    counts = _counts(found)
    counts["untrained"] = sum(map(untrained, records(trials)))
    counts["pruned"] -= counts["untrained"]
    dataset = spec.data.name if spec else mapping(definition.get("data")).get("name")
    classes = [number(source.get("classes")) for source in (environment, definition)]
    floor = _lowest(number(wanted.floor), teacher, classes)
    history = _history(trials, floor, found)
    return StudyData(
        name=study.study_name,
        storage=masked(storage_url),
        dataset=dataset,
        cost=_cost(found, definition),
        command=attrs.get(StudyAttr.COMMAND),
        counts=counts,
        hypervolume=None if floor is None else float(history["hypervolume"].max()) if len(history) else 0.0,
        floor=floor,
        trials=trials,
        curves=pd.DataFrame(
            [(trial.number, *point) for trial in found for point in _curve(trial)],
            columns=["trial", "epoch", "accuracy"],
        ),
        anchors=deck_rows.anchors(trials, spec, deck_rows.by_recipe(study, dataset)),
        history=history,
        confirmed=confirmation.confirmations(attrs),
        runs=confirmation.runs(attrs),
        controls=confirmation.runs(attrs, StudyAttr.CONTROL),
        repeats=confirmation.repeats(attrs),
        within=float(wanted.within),
        measured=measurements(attrs),
        stored=tuple(found),
        spent=_spent(attrs),
        teacher=teacher or None,
        environment=environment,
        definition=definition,
        study_file=study_file,
        objectives=_objectives(study),
    )


def _objectives(study: optuna.Study) -> tuple[str, str] | None:
    """Return the names of another program's objectives, as Optuna's tables have them."""
    names = tuple(study.metric_names or ("values_0", "values_1"))
    own = names == METRICS or StudyAttr.DEFINITION in study.user_attrs
    return None if own else (str(names[0]), str(names[1]))


def configuration(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration in a row of `StudyData.trials`, without the parameters that the trial did not set."""
    pairs = {str(key): value for key, value in row.items() if str(key).startswith(CONFIG)}
    return {key.removeprefix(CONFIG): value for key, value in pairs.items() if not formatting.missing(value)}


def result(data: StudyData, *, report: str | None) -> dict[str, Any]:
    """Return what `--json` prints: strict JSON, accuracies as fractions, the front by ratio ascending."""
    front = [
        {"trial": row["number"], **measured(row),
         "params": configuration(row), "anchor": row["anchor"]}
        for row in records(data.front)
    ]  # fmt: skip
    teacher = data.teacher and {key: data.teacher.get(key) for key in ("accuracy", "parameters")}
    contract = {
        "study": data.name,
        "storage": data.storage,
        "dataset": data.dataset,
        "trials": {state: data.counts[state] for state in ("complete", "pruned", "failed")},
        "front": front,
        "hypervolume": data.hypervolume,
        "teacher": teacher,
        "report": report,
    }
    return {key: plain(value) for key, value in contract.items()}


def measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measured figures of a row of `StudyData.trials`; accuracies are those after `best_epoch`."""
    whole = {name: None if formatting.missing(row[name]) else int(row[name]) for name in ("sittings", "best_epoch")}
    return {name: row[name] for name in ("accuracy", "test_accuracy", *TIMED)} | whole


def untrained(row: Mapping[str, Any]) -> bool:
    """Whether the pruner refused a trial before its first epoch, so that it does not count as finished."""
    return bool(row["state"] == "PRUNED" and row["epochs_run"] == 0)


def mapping(value: object) -> dict[str, Any]:
    """Return a copy of a stored mapping; empty for anything else."""
    return dict(value) if isinstance(value, Mapping) else {}


def _spec(study_file: dict[str, Any]) -> StudySpec | None:
    """Return the study's specification; None where it is missing or of another version: a report works without it."""
    try:
        return from_dict(study_file) if study_file else None
    except StudyFileError:
        return None


def _spent(attrs: Mapping[str, Any]) -> dict[str, float]:
    """Add up the seconds that each process stored; drop values that are no numbers."""
    total: dict[str, float] = {}
    for name, kept in attrs.items():
        if name.split(" ")[0] == StudyAttr.SPENT:
            for work, value in mapping(kept).items():
                if number(value) > 0:
                    total[str(work)] = total.get(str(work), 0.0) + number(value)
    return total


def _lowest(wanted: float, teacher: Mapping[str, Any], classes: Sequence[float]) -> float | None:
    """Return the accuracy from which hypervolume counts, a fraction: a student below it is of no use.

    As wanted (the study file's `[report] floor`, in percent), else 20 points below the teacher's validation accuracy
    (its test accuracy where that is not known), and never below chance; chance where the teacher is not known. None
    where nothing is known.
    """
    if not math.isnan(wanted):
        return wanted / 100
    known = [number(teacher.get(name)) for name in ("validation_accuracy", "accuracy")]
    below = [accuracy - BELOW_TEACHER for accuracy in known if not math.isnan(accuracy)][:1]
    chance = [1 / int(count) for count in classes if count >= 1][:1]
    return max(below + chance, default=None)


def _history(trials: pd.DataFrame, floor: float | None, stored: Sequence[FrozenTrial]) -> pd.DataFrame:
    """Return the hypervolume of the complete trials after each finished one: see `StudyData.history`."""
    if floor is None:
        return pd.DataFrame(columns=list(HISTORY_COLUMNS))
    begin = min((trial.datetime_start for trial in stored if trial.datetime_start), default=None)
    rows: list[tuple[int, int, float, float, float]] = []
    best: list[tuple[float, float]] = []
    volume = pareto.study_hypervolume(best, floor)
    epochs = 0.0
    finished = trials[(trials["state"] == "COMPLETE") | (trials["state"] == "PRUNED") & (trials["epochs_run"] > 0)]
    for row in records(finished.sort_values(["finished", "number"])):
        epochs += row["epochs_spent"]
        point = (row["accuracy"], row["ratio"])
        if row["state"] == "COMPLETE" and not any(pareto.dominates(known, point) for known in best):
            # dominated points add no area, so the front so far suffices
            best = [known for known in best if not pareto.dominates(point, known)] + [point]
            volume = pareto.study_hypervolume(best, floor)
        rows.append((len(rows) + 1, row["number"], volume, epochs, _hours(begin, row["finished"])))
    return pd.DataFrame(rows, columns=list(HISTORY_COLUMNS))


def _hours(begin: datetime | None, end: object) -> float:
    if begin is None or not isinstance(end, datetime) or pd.isna(end):
        return math.nan
    return (end - begin).total_seconds() / 3600


def _cost(trials: Sequence[FrozenTrial], definition: dict[str, Any]) -> str:
    kinds = [mapping(trial.user_attrs.get(Attr.TIMING)).get("kind") for trial in trials]
    return str(definition.get("cost") or next(filter(None, kinds), "latency"))


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    names = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL,
             "running": TrialState.RUNNING, "waiting": TrialState.WAITING}  # fmt: skip
    states = [trial.state for trial in trials]
    return {name: states.count(state) for name, state in names.items()}


def _curve(trial: FrozenTrial) -> list[tuple[int, float]]:
    """Return (epoch, validation accuracy) pairs, ordered; the entry of epoch 0 holds no accuracy."""
    points = []
    for epoch, entry in mapping(trial.user_attrs.get(Attr.CURVE)).items():
        accuracy = number(entry[0]) if isinstance(entry, list | tuple) and entry else math.nan
        if str(epoch).isdecimal() and not math.isnan(accuracy):
            points.append((int(epoch), accuracy))
    return sorted(points)


def _row(trial: FrozenTrial, timed: sittings.Ratio | None) -> dict[str, Any]:
    attrs, curve = trial.user_attrs, _curve(trial)
    row: dict[str, Any] = {name: number(attrs.get(name)) for name in NUMBERS}
    if trial.state == TrialState.COMPLETE:
        row["accuracy"], row["ratio"] = trial.values
    elif math.isnan(row["accuracy"]) and curve:
        row["best_epoch"], row["accuracy"] = max(curve, key=lambda point: (point[1], -point[0]))
    if timed is not None:
        figures = timed.ratio, timed.low, timed.high, float(timed.sittings), timed.microseconds, timed.microseconds_1
        row |= zip(TIMED, figures, strict=True)
    row["epochs_run"] = float(curve[-1][0]) if curve else 0.0
    anchor = attrs.get(Attr.ANCHOR)
    why, reason = _ending(trial)
    if not math.isnan(row["resumes"]):
        reason = "; ".join(filter(None, [f"resumes trial {row['resumes']:.0f}", reason]))
    forecast = trial.state == TrialState.PRUNED or "forecast" in (why or {})
    planned = number(mapping(attrs.get(Attr.CONFIG)).get("epochs"))
    row["epochs_spent"] = max(0.0, row["epochs_run"] - number(attrs.get(Attr.RESUMED, 0)))
    row["saved"] = planned - row["epochs_run"] if forecast and curve else 0.0
    return {
        "number": trial.number,
        "state": trial.state.name,
        "anchor": str(anchor) if anchor else None,
        **row,
        "covers": timed is not None and timed.covers,
        "on_front": False,
        "reason": reason,
        "why": why,
        "against_teacher": against_teacher(attrs.get(Attr.AGAINST_TEACHER)),
        "finished": trial.datetime_complete,
    }


def _ending(trial: FrozenTrial) -> tuple[dict[str, Any] | None, str]:
    """Return what was stored of why a trial ended before its last epoch or failed, and the same in words."""
    attrs = trial.user_attrs
    stored = {TrialState.PRUNED: Attr.PRUNED_BY, TrialState.COMPLETE: Attr.STOPPED_BY}.get(trial.state)
    if stored is None or not attrs.get(stored):
        return None, str(attrs.get(Attr.FAIL_REASON) or "")
    text = formatting.pruning(attrs[stored])
    return mapping(attrs[stored]) or None, text if trial.state == TrialState.PRUNED else f"stopped {text}"


def _trials(trials: Sequence[FrozenTrial], study_attrs: Mapping[str, Any]) -> pd.DataFrame:
    timed = sittings.ratios(sittings.by_architecture(trials, study_attrs))
    rows = [_row(trial, timed.get(str(trial.user_attrs.get(Attr.TIMING_KEY)))) for trial in trials]
    complete = [i for i, row in enumerate(rows) if row["state"] == "COMPLETE"]
    for member in pareto.front([(rows[i]["accuracy"], rows[i]["ratio"]) for i in complete]):
        rows[complete[member]]["on_front"] = True
    frame = pd.DataFrame(rows, columns=list(TRIAL_COLUMNS))
    # an object column keeps None as None, and whole numbers whole beside a missing one
    for key in ("anchor", "why", "against_teacher"):
        frame[key] = pd.Series([row[key] for row in rows], dtype=object)
    configs = [mapping(trial.user_attrs.get(Attr.CONFIG)) or trial.params for trial in trials]
    for key in dict.fromkeys(key for config in configs for key in config):
        frame[CONFIG + key] = pd.Series([config.get(key) for config in configs], dtype=object)
    return frame
