"""Forecasts of learning curves from those of similar trials, and their expected gain on the front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdsearch import pareto
from kdsearch.pruning import trend
from kdsearch.pruning.history import Floats, History, Stack
from kdsearch.pruning.scale import Scale

FEWEST = 2  # trials that trained further, required for a forecast
RECENT_SHARE, RECENT_LEAST = 1 / 3, 8  # of the ended trials: the recent ones, whose gain is the study's present pace
STAND_IN_MOST = 15.0  # upper limit of the ended trials that one audited trial stands for
PACE_LEAST = 3  # ended trials required for a pace
EAGER = 10.0  # whole trials' steps (of mean length) over which the share of the pace that a trial must promise falls
STILL = 0.005  # of the hypervolume: a study whose recent trials gained less than this per whole training stands still
TREND_LEAST = 3  # trials seen to their end, required for a trend
UNKNOWN = 0.5  # least deviation of a trial's exponent, as a share of it, where one trial trained further
SPREAD = np.array([-1.0, 0.0, 1.0]) * np.sqrt(1.5)  # of equal weight: mean and variance are a normal variable's


@dataclass(frozen=True)
class Forecast:
    """Forecast of a trial: the value that it would reach, in each of several cases."""

    steps: NDArray[np.int64]  # (horizons,), ascending, beyond the trial's last step
    values: Floats  # (cases, horizons), observed value by each step, more is better
    weights: Floats  # (cases,), the weight of each; they sum to 1

    def quantile(self, level: float) -> Floats:
        """Return a weighted quantile of the values, (horizons,), interpolated between the middles of their weights."""
        order = np.argsort(self.values, axis=0, kind="stable")
        ranked = np.take_along_axis(self.values, order, axis=0)
        weights = self.weights[order]
        middles = np.cumsum(weights, axis=0) - weights / 2
        first, last = middles[:1], middles[-1:]
        middles = (middles - first) / np.maximum(last - first, 1e-300)  # the ends are the quantiles 0 and 1
        return np.array([np.interp(level, at, values) for at, values in zip(middles.T, ranked.T, strict=True)])


def log_steps(steps: NDArray[np.int64], grid: NDArray[np.int64]) -> Floats:
    """Return the logarithm of steps counted from 1, whether the study counts from 0 or from 1."""
    found: Floats = np.log(steps - origin(grid))
    return found


def origin(grid: NDArray[np.int64]) -> int:
    """Return the step before a study's first one: 0, or less where its steps count from less than 1."""
    return min(int(grid[0]), 1) - 1


def extended(errors: Floats, clock: Floats, wanted: Floats) -> Floats:
    """Return log errors at wanted times; beyond its last point a curve continues as the power law of its second half.

    Args:
        errors: (points,), log errors.
        clock: (points,), log steps, ascending.
        wanted: (times,), log steps.

    Returns:
        (times,).
    """
    half = max(0, len(errors) // 2 - 1)
    run = clock[-1] - clock[half]
    slope = (errors[half] - errors[-1]) / run if run > 0 else 0.0
    found: Floats = np.interp(wanted, clock, errors) - slope * np.clip(wanted - clock[-1], 0.0, None)
    return found


def distances(others: Stack, scale: Scale, point: Floats, features: Floats, column: int) -> Floats:
    """Return each trial's distance from one, (others,): in parameters, known objectives and error at the same step.

    Args:
        others: trials, each with a value at the column.
        scale: of the objectives.
        point: (objectives,), the trial's best checkpoint.
        features: (columns,), its parameters from 0 to 1.
        column: of the history's grid, at which errors are compared.
    """
    known = np.arange(len(point)) != scale.observed
    here, there = scale.transform(point[None]), scale.transform(others.points)
    distance: Floats = np.abs(others.features - features).sum(axis=1)
    distance += (np.abs(there - here) / scale.span)[:, known].sum(axis=1)
    distance += np.abs(scale.errors(others.best[:, column]) - scale.errors(point[scale.observed]))
    return distance


def forecast(history: History, scale: Scale, *, last_step: int, neighbours: int) -> Forecast | None:
    """Forecast the trial in question: its error falls as that of each of the trials most like it fell.

    None of them is quite like it: by what differs between the two (parameters, known objectives, error at the same
    step) a trend is added, in three cases for how uncertain it is. A curve that was cut short continues as a power law,
    and counts as far as it was seen. An audited curve that the pruner would have ended also counts for those that were
    ended like it: inverse probability of censoring weights (Robins and Rotnitzky 1992). So outcomes that pruning
    prevents are not forecast to be impossible.

    Args:
        history: updated, with an own curve.
        scale, last_step: of the objectives, of the trial.
        neighbours: number of similar trials used, and half as many more that were seen to their end.

    Returns:
        None if too few trials went beyond the trial's last step, or the trial is at its end.
    """
    own = history.own
    assert own is not None
    step = int(own.steps[-1])
    column = int(np.searchsorted(history.grid, step))
    others = history.curves()
    further = others.where((others.last > step) & ~np.isnan(others.best[:, column]))
    beyond = history.grid[(history.grid > step) & (history.grid < last_step)]
    steps = np.append(beyond, last_step)
    if len(further) < FEWEST or last_step <= step:
        return None
    features = history.features([own.params])
    distance = distances(further, scale, own_point(history), features[0], column)
    order = np.argsort(distance, kind="stable")
    rows = np.union1d(order[:neighbours], order[further.whole[order]][: max(1, neighbours // 2)])
    chosen, apart = further.where(rows), distance[rows]
    clock, wanted = log_steps(history.grid, history.grid), log_steps(steps, history.grid)
    falls = np.empty((len(chosen), len(steps)))
    for row, best in zip(falls, chosen.best, strict=True):
        seen = ~np.isnan(best)
        errors = scale.errors(best[seen])
        row[:] = scale.errors(best[column]) - extended(errors, clock[seen], wanted)
    near = max(float(np.median(distance[order[:neighbours]])), 1e-9)
    weights = _weights(history, chosen, step, steps) / (1.0 + (apart / near) ** 2)
    run = wanted - clock[column]
    mean, deviation = _trend(history, scale, features, further, chosen, column, last_step)
    least = UNKNOWN * float(np.median(falls[:, -1])) / run[-1] / np.sqrt(len(further))
    exponents = mean + SPREAD[:, None] * np.maximum(deviation, least)  # (cases, chosen)
    falls = np.maximum(falls + exponents[:, :, None] * run, 0.0).reshape(-1, len(steps))
    gap = max(scale.ideal - float(own.best[-1]), 0.0)
    weights = np.tile(weights / weights.sum() / len(SPREAD), len(SPREAD))
    return Forecast(steps, own.best[-1] - gap * np.expm1(-falls), weights)


def _trend(
    history: History, scale: Scale, features: Floats, further: Stack, chosen: Stack, column: int, last_step: int
) -> tuple[Floats, Floats]:
    """Return how much the trial's exponent is expected to differ from each chosen trial's, and the deviation of that.

    The exponent of a curve is the fall of its log error from the trial's present step to its end, per log step.

    Args:
        history, scale, last_step: as in `forecast`.
        features: (1, columns), the trial's parameters from 0 to 1.
        further: trials that trained further than it; the trend is that of those that were seen to their end.
        chosen: trials that are compared with.
        column: of the history's grid, the present step.

    Returns:
        (chosen,) each; 0 where too few trials were seen to their end.
    """
    clock = log_steps(history.grid, history.grid)
    end = np.searchsorted(history.grid, np.minimum(further.last, last_step), side="right") - 1
    used = further.whole & (end > column)
    whole, end = further.where(used), end[used]
    if len(whole) < TREND_LEAST:
        return np.zeros(len(chosen)), np.zeros(len(chosen))
    ends = whole.best[np.arange(len(whole)), end]
    falls = scale.errors(whole.best[:, column]) - scale.errors(ends)
    own = history.own
    assert own is not None
    here = _explaining(scale, own_point(history)[None], features, own.best[-1:])
    return trend.differences(
        _explaining(scale, whole.points, whole.features, whole.best[:, column]),
        falls / (clock[end] - clock[column]),
        np.where(whole.would_end >= history.grid[column], stand_in(history.ended), 1.0),
        here - _explaining(scale, chosen.points, chosen.features, chosen.best[:, column]),
    )


def _explaining(scale: Scale, points: Floats, features: Floats, values: Floats) -> Floats:
    """Return what a trend explains curves by, (trials, columns): parameters, known objectives, and the log error."""
    known = np.arange(points.shape[1]) != scale.observed
    return np.column_stack([features, (scale.transform(points) / scale.span)[:, known], scale.errors(values)])


def _weights(history: History, chosen: Stack, step: int, steps: NDArray[np.int64]) -> Floats:
    """Return the weight of each curve, (chosen,), by what was seen of it and by how many were ended like it."""
    here, there = log_steps(np.array([step, steps[-1]]), history.grid)
    seen = (log_steps(chosen.last, history.grid) - here) / max(there - here, 1e-9)
    found: Floats = np.where(chosen.whole, 1.0, np.clip(seen, 0.05, 1.0))
    found[chosen.whole & (chosen.would_end >= step)] = stand_in(history.ended)
    return found


def stand_in(ended: Stack) -> float:
    """Return how many trials an audited one that would have been ended stands for: itself and those that were ended."""
    audited = int((ended.audited & (ended.would_end >= 0)).sum())
    cut = int((~ended.whole & ~ended.audited).sum())
    return 1.0 + min(cut / audited, STAND_IN_MOST) if audited else 1.0


def mistaken(history: History, scale: Scale, bar: float) -> float:
    """Return the share of audited trials that would have been ended and later gained more per step than `bar`.

    One rightly ended trial is added (Laplace's rule, one-sided), so that without an audit there is no mistake.
    """
    ended = history.ended
    rows = np.flatnonzero(ended.audited & (ended.would_end >= 0) & (ended.last > ended.would_end))
    if not len(rows):
        return 0.0
    wrong = 0
    for row in rows:
        others = ended.points[ended.feasible & (np.arange(len(ended)) != row)]
        column = int(np.searchsorted(history.grid, ended.would_end[row]))
        early, late = ended.points[row].copy(), ended.points[row]
        early[scale.observed] = ended.best[row, min(column, len(history.grid) - 1)]
        if np.isnan(early[scale.observed]):
            continue
        front = scale.transform(np.vstack([others, early]))
        gain = pareto.gains(front[pareto.members(front)], scale.transform(late[None]), scale.reference)[0]
        wrong += bool(gain > bar * (ended.last[row] - ended.would_end[row]) and gain > 0)
    return wrong / (len(rows) + 1)


def promise(history: History, scale: Scale, hope: Forecast, front: Floats, optimistic: Floats | None = None) -> float:
    """Return the highest expected gain in hypervolume per step by any future step of the trial in question.

    Args:
        history, hope: with the trial's own curve, and its forecast.
        scale: of the objectives.
        front: (members, objectives), transformed, the trial's own best checkpoint included.
        optimistic: (horizons,), values whose gain counts if it is higher than the expected one.
    """
    assert history.own is not None
    point = own_point(history)
    values = hope.values if optimistic is None else np.vstack([hope.values, optimistic])
    hoped = np.tile(point, (values.size, 1))
    hoped[:, scale.observed] = values.reshape(-1)
    hoped = scale.transform(hoped)
    if len(point) == 2:
        found = pareto.gains(front, hoped, scale.reference)
    else:
        axis = scale.observed
        found = pareto.gains_along(front, hoped[0], axis, hoped[:, axis], scale.reference)
    gains = found.reshape(values.shape)
    expected = hope.weights @ gains[: len(hope.weights)]
    if optimistic is not None:
        expected = np.maximum(expected, gains[-1])
    return float((expected / (hope.steps - history.own.steps[-1])).max())


def own_point(history: History) -> Floats:
    """Return the best checkpoint of the trial in question, (objectives,), as reported, more is better."""
    assert history.own is not None
    point: Floats = history.own.known.copy()
    point[history.observed] = history.own.best[-1]
    return point


def pace(history: History, scale: Scale) -> float:
    """Return the hypervolume per step that the study's recent trials added; 0 while there are too few."""
    ended = history.ended
    if len(ended) < PACE_LEAST:
        return 0.0
    recent = max(RECENT_LEAST, int(RECENT_SHARE * len(ended)))
    points = scale.transform(ended.points)
    older = points[:-recent][ended.feasible[:-recent]]
    points = points[ended.feasible]
    now, before = _volume(points, scale), _volume(older, scale)
    steps = np.exp(log_steps(ended.last[-recent:], history.grid)).sum()
    return (now - before) / max(float(steps), 1.0)


def demanded(history: History, least: float) -> float:
    """Return the share of the study's pace that a trial must promise: 1 at first, falling to `least`; 0 if it is 0."""
    if least == 0:
        return 0.0
    start, curves = origin(history.grid), history.curves()
    steps, whole = curves.last - start, curves.whole
    length = steps[whole].mean() if whole.any() else int(history.grid[-1]) - start
    return max(least, 1.0 - float(steps.sum() / max(length, 1)) / EAGER)


def stands_still(history: History, scale: Scale) -> bool:
    """Return whether the study's recent trials gained next to nothing, as `STILL` says."""
    points = scale.transform(history.ended.points[history.ended.feasible])
    if len(points) < RECENT_LEAST:
        return False
    steps = int(history.grid[-1]) - origin(history.grid)  # of a whole training
    return pace(history, scale) * steps < STILL * _volume(points, scale)


def _volume(points: Floats, scale: Scale) -> float:
    """Return the hypervolume of (points, objectives), transformed; 0 if there are none."""
    return pareto.volume(points[pareto.members(points)], scale.reference) if len(points) else 0.0
