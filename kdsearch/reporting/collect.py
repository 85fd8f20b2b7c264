"""Read a study from its storage into pandas frames for a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import optuna
import pandas as pd
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdsearch import pareto, sittings
from kdsearch.errors import StorageError
from kdsearch.records import METRICS, Attr, ConfirmedRun, StudyAttr, against_teacher
from kdsearch.reporting import confirmation, deck_rows, formatting, growth, importance
from kdsearch.reporting.formatting import number, records
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
CURVE_COLUMNS = ("trial", "epoch", "accuracy")


@dataclass(frozen=True)
class StudyData:
    """A study as plain data; accuracies are fractions, missing numbers are NaN.

    Attributes:
        name: the study's name.
        storage: the storage's URL, its password masked.
        dataset: the data set's name; None where the study does not store it.
        cost: what the ratio compares: "latency" (measured time) or "flops" (counted operations).
        command: the last command line that ran the study, or None.
        counts: trials by state: complete, pruned, failed, running, waiting, untrained (pruned before the first epoch).
        hypervolume: of the complete trials, see `pareto.study_hypervolume`; None without a floor.
        floor: validation accuracy from which it counts: see `growth.lowest`.
        trials: one row a trial, by number. `ratio`, `ratio_low`, `ratio_high` are over all `sittings` of its
            architecture (a trial's value in Optuna is its first one); where `covers` is False the interval is that of
            one sitting. `microseconds` is the student's time an image at the batch that was timed, `microseconds_1` at
            batch 1. `accuracy` is that of the epoch that validation chose, `reason` says why a trial was pruned,
            stopped early or failed, `why` is what was stored of it, `against_teacher` counts test images by which of
            the two models is right (None: not stored), `saved` is how many epochs of its configuration a forecast
            saved, `epochs_spent` leaves out the epochs of its curve that another trial trained, `resumes` is the ended
            trial that it went on with, `on_front` marks non-dominated complete trials,
            `finished` is a time; columns `config.KEY` hold the configuration.
        curves: (trial, epoch, validation accuracy), ordered.
        anchors: one row a slide row: see `deck_rows.anchors`.
        history: the hypervolume so far: see `growth.history`.
        confirmed: results of `kdsearch confirm`: see `confirmation.confirmations`.
        runs, controls: its runs by trial, and those of `--control`, the students trained on labels alone.
        repeats: number of runs that confirmation was begun with, then what it was raised to.
        within: points below the teacher's test accuracy that the study accepts of a student to ship.
        measured: ratios measured outside of the search: see `measured.measurements`.
        stored: the trials as Optuna has them.
        spent: seconds of all runs by kind of work; empty where none has ended.
        teacher: TeacherFacts as a dictionary, or None.
        environment, definition, study_file: as stored with the study, empty where missing.
        objectives: names of another program's objectives; None in a study of kdsearch.
    """

    name: str
    storage: str
    dataset: str | None
    cost: str
    command: str | None
    counts: dict[str, int]
    hypervolume: float | None
    floor: float | None
    trials: pd.DataFrame
    curves: pd.DataFrame
    anchors: pd.DataFrame
    history: pd.DataFrame
    confirmed: pd.DataFrame
    runs: dict[int, list[ConfirmedRun]]
    controls: dict[int, list[ConfirmedRun]]
    repeats: tuple[int, ...]
    within: float
    measured: pd.DataFrame
    stored: tuple[FrozenTrial, ...]
    spent: dict[str, float]
    teacher: dict[str, Any] | None
    environment: dict[str, Any]
    definition: dict[str, Any]
    study_file: dict[str, Any]
    objectives: tuple[str, str] | None = None

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
        rows = self.trials[self.trials["on_front"].astype(bool)]
        return rows.sort_values(["ratio", "number"])

    @property
    def timed_batch(self) -> int | None:
        """Images a batch in the trials' timings, more on a GPU than on a CPU; None where none is stored."""
        found = (_mapping(trial.user_attrs.get(Attr.TIMING)).get("batch") for trial in self.stored)
        return next((batch for batch in found if is_whole(batch, least=1)), None)

    @cached_property
    def importances(self) -> pd.DataFrame:
        """Importance of the parameters for each objective, computed on access: see `importance.importances`."""
        return importance.importances(self.stored)


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
        _mapping(attrs.get(name))
        for name in (StudyAttr.ENVIRONMENT, StudyAttr.DEFINITION, StudyAttr.STUDY_FILE, StudyAttr.TEACHER)
    )
    spec = _spec(study_file)
    trials = _trials(found, attrs)
    counts = _counts(found)
    counts["untrained"] = sum(map(untrained, records(trials)))
    counts["pruned"] -= counts["untrained"]
    dataset = spec.data.name if spec else _mapping(definition.get("data")).get("name")
    wanted = formatting.number((spec.report if spec else ReportSpec()).floor)
    floor = growth.lowest(None if math.isnan(wanted) else wanted, teacher, _classes(environment, definition))
    volume = growth.history(trials, floor, begin=_begin(found))
    return StudyData(
        name=study.study_name,
        storage=masked(storage_url),
        dataset=dataset,
        cost=_cost(found, definition),
        command=attrs.get(StudyAttr.COMMAND),
        counts=counts,
        hypervolume=None if volume is None else float(volume["hypervolume"].max()) if len(volume) else 0.0,
        floor=floor,
        trials=trials,
        curves=_curves(found),
        anchors=deck_rows.anchors(trials, spec, deck_rows.by_recipe(study, dataset)),
        history=pd.DataFrame(columns=list(growth.COLUMNS)) if volume is None else volume,
        confirmed=confirmation.confirmations(attrs),
        runs=confirmation.runs(attrs),
        controls=confirmation.runs(attrs, StudyAttr.CONTROL),
        repeats=confirmation.repeats(attrs),
        within=float((spec.report if spec else ReportSpec()).within),
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
    """Return the names of another program's objectives, as Optuna's tables have them; None in a study of kdsearch."""
    names = tuple(study.metric_names or ("values_0", "values_1"))
    own = names == METRICS or StudyAttr.DEFINITION in study.user_attrs
    return None if own else (str(names[0]), str(names[1]))


def configuration(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration in a row of `StudyData.trials`, without the parameters that the trial did not set."""
    pairs = {str(key): value for key, value in row.items() if str(key).startswith(CONFIG)}
    return {key.removeprefix(CONFIG): value for key, value in pairs.items() if not formatting.missing(value)}


def plain(value: Any) -> Any:
    """Return a value in types that strict JSON knows: numpy scalars unwrapped, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def result(data: StudyData, *, report: str | None) -> dict[str, Any]:
    """Return what `--json` prints: strict JSON, accuracies as fractions, the front by ratio ascending.

    Args:
        data: a collected study.
        report: path of the HTML report, or None where none was written.
    """
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
    found = {name: row[name] for name in ("accuracy", "test_accuracy", *TIMED)}
    found["sittings"] = None if formatting.missing(row["sittings"]) else int(row["sittings"])
    return found | {"best_epoch": None if formatting.missing(row["best_epoch"]) else int(row["best_epoch"])}


def untrained(row: Mapping[str, Any]) -> bool:
    """Whether the pruner refused a trial before its first epoch, so that it does not count as finished."""
    return bool(row["state"] == "PRUNED" and row["epochs_run"] == 0)


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _spec(study_file: dict[str, Any]) -> StudySpec | None:
    """Return the study's specification; None where it is missing or of another version: a report works without it."""
    try:
        return from_dict(study_file) if study_file else None
    except ValueError:
        return None


def _begin(trials: Sequence[FrozenTrial]) -> datetime | None:
    return min((trial.datetime_start for trial in trials if trial.datetime_start), default=None)


def _spent(attrs: Mapping[str, Any]) -> dict[str, float]:
    """Add up the seconds that each process stored; drop values that are no numbers."""
    total: dict[str, float] = {}
    for name, kept in attrs.items():
        if name.split(" ")[0] == StudyAttr.SPENT:
            for work, value in _mapping(kept).items():
                if number(value) > 0:
                    total[str(work)] = total.get(str(work), 0.0) + number(value)
    return total


def _classes(environment: dict[str, Any], definition: dict[str, Any]) -> int | None:
    for source in (environment, definition):
        classes = number(source.get("classes"))
        if classes >= 1:
            return int(classes)
    return None


def _cost(trials: Sequence[FrozenTrial], definition: dict[str, Any]) -> str:
    kinds = [_mapping(trial.user_attrs.get(Attr.TIMING)).get("kind") for trial in trials]
    return str(definition.get("cost") or next(filter(None, kinds), "latency"))


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    names = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL,
             "running": TrialState.RUNNING, "waiting": TrialState.WAITING}  # fmt: skip
    states = [trial.state for trial in trials]
    return {name: states.count(state) for name, state in names.items()}


def _curve(trial: FrozenTrial) -> list[tuple[int, float]]:
    """Return (epoch, validation accuracy) pairs, ordered, without the entry of epoch 0, which holds no accuracy."""
    points = []
    for epoch, entry in _mapping(trial.user_attrs.get(Attr.CURVE)).items():
        accuracy = number(entry[0]) if isinstance(entry, list | tuple) and entry else math.nan
        if str(epoch).isdigit() and not math.isnan(accuracy):
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
    planned = number(_mapping(attrs.get(Attr.CONFIG)).get("epochs"))
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
    return _mapping(attrs[stored]) or None, text if trial.state == TrialState.PRUNED else f"stopped {text}"


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
    configs = [_mapping(trial.user_attrs.get(Attr.CONFIG)) or trial.params for trial in trials]
    for key in dict.fromkeys(key for config in configs for key in config):
        frame[CONFIG + key] = pd.Series([config.get(key) for config in configs], dtype=object)
    return frame


def _curves(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    rows = [(trial.number, *point) for trial in trials for point in _curve(trial)]
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))
