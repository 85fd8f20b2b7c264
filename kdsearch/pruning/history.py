"""A study's history as arrays: learning curves, known objectives, parameters; all to be maximised."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from kdsearch.errors import KdsearchError
from kdsearch.records import FOREIGN, Attr

Floats = NDArray[np.float64]

DECADE = 10.0  # numeric choices that span this factor are ordered on a log scale
MISSING = 0.5  # value of a parameter that was not sampled


@dataclass(frozen=True)
class Curve:
    """One trial's checkpoints."""

    number: int
    steps: NDArray[np.int64]  # (checkpoints,), ascending, with something observed at each
    best: Floats  # (checkpoints,), the best observed value so far, discounted by `credited`, more is better
    reported: float  # the best observed value as reported, more is better; NaN where nothing was observed
    known: Floats  # (objectives,), the latest values with NaN for the observed objective, more is better
    diverged: bool  # whether the last value of the observed objective is NaN
    recovered: bool  # whether a finite value followed a NaN
    feasible: bool  # whether it may be on the front, by the study's constraints
    whole: bool  # whether nothing cut it short, so that its values after any of its steps are known
    audited: bool  # whether it was drawn never to be pruned
    would_end: int  # of an audited trial, the step at which it would have been ended, else -1
    params: Mapping[str, Any]


def stored_curve(trial: BaseTrial) -> dict[str, list[float | None]]:
    """Return a trial's curve as `report` stored it, by step; empty if it was copied from another trial.

    `kdsearch`'s own studies, also those of older versions, store it under its plain name.
    """
    attrs = trial.user_attrs
    curve = attrs.get(FOREIGN + Attr.CURVE)
    if curve is not None:
        return curve if attrs.get(FOREIGN + Attr.TRIAL) == trial.number else {}
    curve = attrs.get(Attr.CURVE)
    return curve if isinstance(curve, dict) and all(isinstance(values, list) for values in curve.values()) else {}


def stored(trial: BaseTrial, name: str) -> Any:
    """Return a user attribute of the pruner, under its plain name or with the prefix used in other studies."""
    attrs = trial.user_attrs
    return attrs.get(FOREIGN + name, attrs.get(name))


def continued(trial: BaseTrial) -> int | None:
    """Return the number of the ended trial that a trial resumes, with its curve; None for other trials."""
    attrs = trial.user_attrs
    number = attrs.get(FOREIGN + Attr.RESUMES, attrs.get(Attr.RESUMES) if Attr.CURVE in attrs else None)
    return number if isinstance(number, int) and 0 <= number < trial.number else None


class Evidence:
    """Finds the objective observed step by step: the one that changes within a trial, else the one that was None."""

    def __init__(self) -> None:
        self._changed: dict[int, int] = {}  # by objective: a trial in which it changed
        self._missing: set[int] = set()  # None in a trial's first report, in which others were known

    def see(self, number: int, curve: Mapping[str, Sequence[float | None]]) -> None:
        if not curve:
            return
        rows = [curve[step] for step in sorted(curve, key=int)]
        unknown = {index for index, value in enumerate(rows[0]) if value is None}
        if len(unknown) < len(rows[0]):
            self._missing |= unknown
        for index, column in enumerate(zip(*rows, strict=False)):
            if index not in self._changed and len({v for v in column if v is not None and v == v}) > 1:
                self._changed[index] = number

    def observed(self) -> int | None:
        """Return the objective's index; None while it is not determined.

        Raises:
            KdsearchError: several objectives change and none of these, or more than one, was None at first.
        """
        candidates = set(self._changed) or self._missing
        if len(candidates) > 1:
            candidates = candidates & self._missing
        if len(candidates) != 1 and len(self._changed) > 1:
            changed = (f"objective {index} in trial {number}" for index, number in sorted(self._changed.items()))
            raise KdsearchError(
                "exactly one objective may change from step to step",
                got=", ".join(changed),
                remedy="report the same value of every other objective at all steps of a trial, or None, in its first "
                "report, for the one that is observed",
            )
        return next(iter(candidates)) if len(candidates) == 1 else None


def credited(values: Floats) -> Floats:
    """Discount checkpoints that their neighbours do not support, so that a lucky one is not taken at face value.

    `values` are (checkpoints,), more is better, finite. One higher than both neighbours counts as the higher of these.
    The last one, which has no successor yet, is lowered by the size of the drops seen in the curve, but not below the
    one before. A curve that never falls stays unchanged.
    """
    if len(values) < 2:
        return values
    beside = np.concatenate([values[1:2], np.maximum(values[:-2], values[2:]), values[-1:]])
    found: Floats = np.minimum(values, beside)
    drops = np.minimum(np.diff(values), 0.0)
    found[-1] = min(values[-1], max(values[-2], values[-1] - float(np.sqrt((drops**2).mean()))))
    return found


def read(trial: FrozenTrial, sign: Floats, observed: int, *, constrained: bool = False) -> Curve:
    """Return a trial's curve; checkpoints without a finite observed value are left out.

    Args:
        trial: as stored.
        sign, observed: see `History`.
        constrained: whether the study has constraints: a running trial whose constraints are not stored is then not
            feasible yet.
    """
    known = np.full(len(sign), math.nan)
    steps: list[int] = []
    values: list[float] = []
    diverged = recovered = False
    for step, row in sorted(stored_curve(trial).items(), key=lambda item: int(item[0])):
        if len(row) != len(sign):
            continue  # not a curve of ours
        for index, value in enumerate(row):
            if index != observed and value is not None and math.isfinite(value):
                known[index] = sign[index] * value
        value = row[observed]
        if value is not None:
            recovered |= diverged and math.isfinite(value)
            diverged = math.isnan(value)
            if math.isfinite(value):
                steps.append(int(step))
                values.append(sign[observed] * value)
    raw = np.array(values)
    best = np.maximum.accumulate(credited(raw)) if values else raw
    limits = trial.constraints.values() if constrained else ()
    feasible = all(limit <= 0 for limit in limits) and (not constrained or bool(limits) or trial.state.is_finished())
    audit = stored(trial, Attr.AUDIT)
    would_end = audit.get("would_end") if isinstance(audit, dict) else None
    return Curve(
        number=trial.number,
        steps=np.array(steps, dtype=np.int64),
        best=best,
        reported=max(values, default=math.nan),
        known=known,
        diverged=diverged,
        recovered=recovered,
        feasible=feasible,
        whole=trial.state == TrialState.COMPLETE and stored(trial, Attr.STOPPED_AT) is None,
        audited=isinstance(audit, dict),
        would_end=-1 if would_end is None else int(would_end),
        params=trial.params,
    )


def encoded(distribution: BaseDistribution, value: Any) -> list[float]:
    """Return a parameter as numbers from 0 to 1; one that was not sampled, None, is in the middle.

    Numbers keep their order (on a log scale if the distribution or the choices suggest it), other categories are
    one-hot encoded.
    """
    if isinstance(distribution, IntDistribution | FloatDistribution):
        return [_share(value, distribution.low, distribution.high, log=distribution.log)]
    if not isinstance(distribution, CategoricalDistribution):
        return []
    choices = distribution.choices
    numbers = [float(choice) for choice in choices if isinstance(choice, int | float) and not isinstance(choice, bool)]
    if len(numbers) == len(choices):
        low, high = min(numbers), max(numbers)
        return [_share(value, low, high, log=low > 0 and high / low >= DECADE)]
    return [MISSING if value is None else 0.5 * (value == choice) for choice in choices]


def _share(value: Any, low: float, high: float, *, log: bool) -> float:
    if value is None or high <= low:
        return MISSING
    if log:
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


@dataclass(frozen=True)
class Stack:
    """Many curves as arrays, in a common order."""

    number: NDArray[np.int64]  # (curves,)
    last: NDArray[np.int64]  # (curves,), the last step with a checkpoint
    # (curves, steps), best discounted value up to each step of the history's grid; NaN before a curve's first and after
    # its last checkpoint
    best: Floats
    points: Floats  # (curves, objectives), the best checkpoint, discounted, more is better, no logarithm
    reported: Floats  # (curves, objectives), the same as reported
    features: Floats  # (curves, columns), parameters as numbers from 0 to 1
    feasible: NDArray[np.bool_]  # (curves,), as all below: see `Curve`
    whole: NDArray[np.bool_]
    audited: NDArray[np.bool_]
    would_end: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.number)

    def where(self, rows: NDArray[Any]) -> Stack:
        """Return the rows that a mask or indices select."""
        return Stack(*(getattr(self, field.name)[rows] for field in fields(self)))

    def joined(self, other: Stack) -> Stack:
        if not len(other):
            return self
        if not len(self):
            return other
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return Stack(*map(np.concatenate, pairs))


class History:
    """The curves of a study's trials, cached between calls: a finished trial is read once.

    Attributes:
        observed: index of the objective observed step by step; None while it is not determined.
        sign: (objectives,), 1 where more is better, else -1.
        grid: (steps,), ascending: every step at which something was observed.
        distributions: of all parameters seen, each the first one of its name.
        ended: COMPLETE and PRUNED trials with a checkpoint, in the order in which their end was noticed; those that
            another trial has resumed are left out, for its curve holds theirs.
        running: RUNNING trials with a checkpoint.
        own: curve of the trial in question, which is in neither.
        recovers: whether any trial had a finite value after a NaN.
    """

    def __init__(self) -> None:
        self._evidence = Evidence()
        self.sign: Floats = np.ones(0)
        self._clear(None)

    def _clear(self, observed: int | None) -> None:
        self.observed = observed
        self.grid: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.distributions: dict[str, BaseDistribution] = {}
        self.own: Curve | None = None
        self.recovers = False
        self._constrained = False
        self._curves: list[Curve] = []
        self._passed: set[int] = set()
        self._continued: set[int] = set()  # trials that an ended one resumed
        self.ended = self.running = self._all = self._others = self._stack([])

    def update(self, study: Study, number: int | None = None) -> None:
        """Read new data from the storage, with `number` that of the trial in question.

        Failed trials are left out, as their checkpoints cannot be on the front.

        Raises:
            KdsearchError: the objective observed step by step is ambiguous (see `Evidence`).
        """
        trials = study.get_trials(deepcopy=False)
        unread = sorted(set(range(len(trials))) - self._passed)  # a trial's number is its place
        new = [trials[number] for number in unread if trials[number].state != TrialState.WAITING]
        for trial in new:
            self._evidence.see(trial.number, stored_curve(trial))
        observed = self._evidence.observed()
        constrained = self._constrained or _has_constraints(study, new)
        self.sign = np.array([1.0 if way == StudyDirection.MAXIMIZE else -1.0 for way in study.directions])
        if observed != self.observed or constrained != self._constrained:
            self._clear(observed)
            new = [trial for trial in trials if trial.state != TrialState.WAITING]
        self._constrained = constrained
        if observed is not None:
            self._read_new(new, number, observed)

    def _read_new(self, trials: Sequence[FrozenTrial], number: int | None, observed: int) -> None:
        known = len(self.distributions), len(self.grid)
        fresh: list[Curve] = []
        running: list[Curve] = []
        left_out: set[int] = set()
        self.own = None
        for trial in trials:
            over = trial.state != TrialState.RUNNING
            if over and trial.number != number:
                self._passed.add(trial.number)
            if trial.state == TrialState.FAIL:
                continue
            curve = self._read(trial, observed)
            before = continued(trial)
            if before is not None and len(curve.steps):
                (self._continued if trial.number in self._passed else left_out).add(before)
            if trial.number == number:
                self.own = curve
            elif len(curve.steps) and not np.isnan(np.delete(curve.known, observed)).any():
                (fresh if over else running).append(curve)
        self._curves += fresh
        changed = known != (len(self.distributions), len(self.grid))  # rows made before lack their columns
        self._all = self._stack(self._curves) if changed else self._all.joined(self._stack(fresh))
        self.running = self._stack(running)
        left_out |= self._continued
        self.ended = self._all.where(~np.isin(self._all.number, list(left_out))) if left_out else self._all
        self._others = self.ended.joined(self.running)

    def _read(self, trial: FrozenTrial, observed: int) -> Curve:
        curve = read(trial, self.sign, observed, constrained=self._constrained)
        self.recovers |= curve.recovered
        for name, distribution in trial.distributions.items():
            self.distributions.setdefault(name, distribution)
        if not np.isin(curve.steps, self.grid).all():
            self.grid = np.union1d(self.grid, curve.steps)
        return curve

    def _stack(self, curves: Sequence[Curve]) -> Stack:
        best = np.full((len(curves), len(self.grid)), math.nan)
        for row, curve in zip(best, curves, strict=True):
            at = np.searchsorted(curve.steps, self.grid, side="right") - 1
            inside = (at >= 0) & (self.grid <= curve.steps[-1])
            row[inside] = curve.best[at[inside]]
        points = np.array([curve.known for curve in curves]).reshape(len(curves), len(self.sign))
        reported = points.copy()
        if curves:
            points[:, self.observed] = [curve.best[-1] for curve in curves]
            reported[:, self.observed] = [curve.reported for curve in curves]
        return Stack(
            np.array([curve.number for curve in curves], dtype=np.int64),
            np.array([curve.steps[-1] for curve in curves], dtype=np.int64),
            best,
            points,
            reported,
            self.features([curve.params for curve in curves]),
            np.array([curve.feasible for curve in curves], dtype=np.bool_),
            np.array([curve.whole for curve in curves], dtype=np.bool_),
            np.array([curve.audited for curve in curves], dtype=np.bool_),
            np.array([curve.would_end for curve in curves], dtype=np.int64),
        )

    def features(self, parameters: Sequence[Mapping[str, Any]]) -> Floats:
        """Return parameters as numbers from 0 to 1: (rows, columns)."""
        seen = self.distributions.items()
        rows = [[number for name, kind in seen for number in encoded(kind, params.get(name))] for params in parameters]
        return np.array(rows, dtype=np.float64).reshape(len(rows), -1 if rows else 0)

    def about(self, number: int) -> History:
        """Return this history with an ended trial, one of `ended`, as the trial in question."""
        found = copy.copy(self)
        found.own = next(curve for curve in self._curves if curve.number == number)
        found.ended = self.ended.where(self.ended.number != number)
        found._others = found.ended.joined(found.running)
        return found

    def curves(self) -> Stack:
        """Return all curves but that of the trial in question."""
        return self._others


def _has_constraints(study: Study, trials: Sequence[FrozenTrial]) -> bool:
    told = getattr(study.sampler, "_constraints_func", None) is not None
    return told or any(trial.system_attrs and trial.constraints for trial in trials)
