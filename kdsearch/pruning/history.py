"""What a study has seen so far, as arrays: learning curves, known objectives, parameters; all to be maximised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdsearch.records import Attr

Floats = NDArray[np.float64]

DECADE = 10.0  # numeric choices that span this factor are ordered on a log scale
MISSING = 0.5  # of a parameter that was not sampled


def signs(directions: Sequence[StudyDirection]) -> Floats:
    """(objectives,): 1 where more is better, else -1."""
    return np.array([1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in directions])


@dataclass(frozen=True)
class Curve:
    """One trial's checkpoints.

    Attributes:
        number: of the trial.
        steps: (checkpoints,), ascending, with something observed at each.
        best: (checkpoints,), the best observed value so far, more is better.
        known: (objectives,), the latest values with NaN for the observed objective, more is better.
        params: of the trial.
    """

    number: int
    steps: NDArray[np.int64]
    best: Floats
    known: Floats
    params: Mapping[str, Any]


def observed_objective(curves: Sequence[Mapping[str, Sequence[float | None]]]) -> int:
    """Which objective is observed step by step: the one that was None where the others were known, else the first."""
    for curve in curves:
        for values in curve.values():
            if None in values and any(value is not None for value in values):
                return list(values).index(None)
    return 0


def read(trial: FrozenTrial, sign: Floats, observed: int) -> Curve:
    """A trial's curve; a checkpoint without a finite observed value is left out."""
    known = np.full(len(sign), math.nan)
    steps: list[int] = []
    best: list[float] = []
    for step, values in sorted(trial.user_attrs.get(Attr.CURVE, {}).items(), key=lambda item: int(item[0])):
        for index, value in enumerate(values):
            if index != observed and value is not None and math.isfinite(value):
                known[index] = sign[index] * value
        value = values[observed]
        if value is not None and math.isfinite(value):
            steps.append(int(step))
            best.append(max(sign[observed] * value, best[-1] if best else -math.inf))
    return Curve(trial.number, np.array(steps, dtype=np.int64), np.array(best), known, trial.params)


class Encoder:
    """Parameters as numbers from 0 to 1, by the distributions first seen.

    Numbers keep their order (logarithms where the distribution or the choices say so), other categories become one
    column a choice; a parameter that was not sampled is in the middle.
    """

    def __init__(self) -> None:
        self.distributions: dict[str, BaseDistribution] = {}

    def see(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """Takes note of parameters; rows that were encoded before new ones lack their columns."""
        for name, distribution in distributions.items():
            self.distributions.setdefault(name, distribution)

    def encode(self, params: Mapping[str, Any]) -> list[float]:
        """One row: as many numbers as the parameters seen so far need."""
        row: list[float] = []
        for name, distribution in self.distributions.items():
            row += _columns(distribution, params.get(name))
        return row


def _columns(distribution: BaseDistribution, value: Any) -> list[float]:
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
    """Many curves as arrays, in one order.

    Attributes:
        number: (curves,), of the trials.
        last: (curves,), the last step with a checkpoint.
        best: (curves, steps), best observed value up to each step of the history's grid; NaN before a curve's first
            and after its last checkpoint.
        points: (curves, objectives), the best checkpoint, more is better, as reported (no logarithm).
        features: (curves, columns), parameters as numbers from 0 to 1.
    """

    number: NDArray[np.int64]
    last: NDArray[np.int64]
    best: Floats
    points: Floats
    features: Floats

    def __len__(self) -> int:
        return len(self.number)

    def where(self, rows: NDArray[Any]) -> Stack:
        """The chosen rows, by mask or indices."""
        return Stack(self.number[rows], self.last[rows], self.best[rows], self.points[rows], self.features[rows])

    def joined(self, other: Stack) -> Stack:
        """These rows, then the other's."""
        if not len(other):
            return self
        if not len(self):
            return other
        return Stack(
            np.concatenate([self.number, other.number]),
            np.concatenate([self.last, other.last]),
            np.concatenate([self.best, other.best]),
            np.concatenate([self.points, other.points]),
            np.concatenate([self.features, other.features]),
        )


class History:
    """The curves of a study's trials, kept from call to call: a finished trial is read once.

    Attributes:
        observed: index of the objective that is observed step by step; None while no trial reported anything.
        sign: (objectives,), 1 where more is better, else -1.
        grid: (steps,), ascending: every step at which something was observed.
        ended: COMPLETE and PRUNED trials with a checkpoint, in the order in which they were found ended.
        running: RUNNING trials with a checkpoint.
        own: curve of the trial asked about, which is in neither.
    """

    def __init__(self) -> None:
        self.observed: int | None = None
        self.sign: Floats = np.ones(0)
        self.grid: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.encoder = Encoder()
        self.own: Curve | None = None
        self._curves: list[Curve] = []
        self._passed: set[int] = set()
        self.ended = self.running = self._stack([])

    def update(self, study: Study, number: int | None = None) -> None:
        """Reads what is new in the storage; a failed trial's checkpoints will not stand on the front: left out.

        Args:
            study: the one that this history is of.
            number: of the trial asked about, or None.
        """
        trials = study.get_trials(deepcopy=False)
        if self.observed is None:
            self.sign = signs(study.directions)
            curves = [trial.user_attrs[Attr.CURVE] for trial in trials if trial.user_attrs.get(Attr.CURVE)]
            if not curves:
                return
            self.observed = observed_objective(curves)
        known = len(self.encoder.distributions), len(self.grid)
        fresh: list[Curve] = []
        running: list[Curve] = []
        self.own = None
        for trial in trials:
            if trial.number in self._passed or trial.state == TrialState.WAITING:
                continue
            over = trial.state != TrialState.RUNNING
            if over and trial.number != number:
                self._passed.add(trial.number)
            if trial.state == TrialState.FAIL:
                continue
            curve = self._read(trial, self.observed)
            if trial.number == number:
                self.own = curve
            elif len(curve.steps) and not np.isnan(np.delete(curve.known, self.observed)).any():
                (fresh if over else running).append(curve)
        self._keep(fresh, running, changed=known != (len(self.encoder.distributions), len(self.grid)))

    def _read(self, trial: FrozenTrial, observed: int) -> Curve:
        curve = read(trial, self.sign, observed)
        self.encoder.see(trial.distributions)
        if not np.isin(curve.steps, self.grid).all():
            self.grid = np.union1d(self.grid, curve.steps)
        return curve

    def _keep(self, fresh: list[Curve], running: list[Curve], *, changed: bool) -> None:
        self._curves += fresh
        self.ended = self._stack(self._curves) if changed else self.ended.joined(self._stack(fresh))
        self.running = self._stack(running)

    def _stack(self, curves: Sequence[Curve]) -> Stack:
        best = np.full((len(curves), len(self.grid)), math.nan)
        for row, curve in zip(best, curves, strict=True):
            at = np.searchsorted(curve.steps, self.grid, side="right") - 1
            inside = (at >= 0) & (self.grid <= curve.steps[-1])
            row[inside] = curve.best[at[inside]]
        points = np.array([curve.known for curve in curves]).reshape(len(curves), len(self.sign))
        if curves:
            points[:, self.observed] = [curve.best[-1] for curve in curves]
        return Stack(
            np.array([curve.number for curve in curves], dtype=np.int64),
            np.array([curve.steps[-1] for curve in curves], dtype=np.int64),
            best,
            points,
            self.features([curve.params for curve in curves]),
        )

    def features(self, parameters: Sequence[Mapping[str, Any]]) -> Floats:
        """(rows, columns): parameters as numbers from 0 to 1."""
        rows = [self.encoder.encode(params) for params in parameters]
        return np.array(rows, dtype=np.float64).reshape(len(rows), -1 if rows else 0)

    def curves(self) -> Stack:
        """All curves but that of the trial asked about."""
        return self.ended.joined(self.running)
