"""Forecasts of learning curves from those of similar trials, and what they would add to the front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdsearch import pareto
from kdsearch.pruning.history import History, Stack
from kdsearch.pruning.scale import Scale

Floats = NDArray[np.float64]

FEWEST = 2  # trials that went further, without which nothing is forecast
RECENT_SHARE, RECENT_LEAST = 1 / 3, 8  # of the ended trials: those whose gain is the study's present pace
PACE_LEAST = 3  # ended trials, without which there is no pace


@dataclass(frozen=True)
class Forecast:
    """What a trial may hope for.

    Attributes:
        steps: (horizons,), ascending, beyond the trial's last step.
        values: (horizons,), optimistic observed value by each, more is better.
    """

    steps: NDArray[np.int64]
    values: Floats


def log_steps(steps: NDArray[np.int64], grid: NDArray[np.int64]) -> Floats:
    """Logarithm of steps counted from 1, whether the study counts from 0 or from 1."""
    found: Floats = np.log(steps - min(int(grid[0]), 1) + 1.0)
    return found


def extended(errors: Floats, clock: Floats, wanted: Floats) -> Floats:
    """Log errors at wanted times; beyond its last point a curve goes on as the power law of its second half.

    Args:
        errors: (points,), log errors.
        clock: (points,), log steps, ascending.
        wanted: (times,), log steps.

    Returns:
        (times,).
    """
    inside: Floats = np.interp(wanted, clock, errors)
    half = max(0, len(errors) // 2 - 1)
    run = clock[-1] - clock[half]
    slope = (errors[half] - errors[-1]) / run if run > 0 else 0.0
    found: Floats = inside - slope * np.clip(wanted - clock[-1], 0.0, None)
    return found


def nearest(
    history: History, others: Stack, scale: Scale, point: Floats, features: Floats, column: int, count: int
) -> NDArray[np.int64]:
    """Indices of the trials most like one: in parameters, in known objectives and in error at the same step.

    Args:
        history: of the study.
        others: trials to choose from, each with a value at the column.
        scale: of the objectives.
        point: (objectives,), the trial's best checkpoint.
        features: (columns,), its parameters from 0 to 1.
        column: of the history's grid, where errors are compared.
        count: how many to take.
    """
    known = np.arange(len(point)) != scale.observed
    here, there = scale.transform(point[None]), scale.transform(others.points)
    distance = np.abs(others.features - features).sum(axis=1)
    distance += (np.abs(there - here) / scale.span)[:, known].sum(axis=1)
    distance += np.abs(scale.errors(others.best[:, column]) - scale.errors(point[scale.observed]))
    return np.argsort(distance, kind="stable")[:count]


def optimistic(history: History, scale: Scale, *, last_step: int, neighbours: int, optimism: float) -> Forecast | None:
    """The forecast of the trial asked about: its error falls as that of the luckier among similar trials fell.

    Args:
        history: updated, with an own curve.
        scale: of the objectives.
        last_step: of the trial.
        neighbours: how many similar trials are asked.
        optimism: quantile of the fall of their log errors.

    Returns:
        None where too few trials went beyond the trial's last step, or the trial is at its end.
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
    features = history.features([own.params])[0]
    chosen = further.where(nearest(history, further, scale, own_point(history), features, column, neighbours))
    clock, wanted = log_steps(history.grid, history.grid), log_steps(steps, history.grid)
    falls = np.empty((len(chosen), len(steps)))
    for row, best in zip(falls, chosen.best, strict=True):
        seen = ~np.isnan(best)
        errors = scale.errors(best[seen])
        row[:] = scale.errors(best[column]) - extended(errors, clock[seen], wanted)
    fall = np.quantile(falls, optimism, axis=0)
    gap = max(scale.ideal - float(own.best[-1]), 0.0)
    return Forecast(steps, own.best[-1] - gap * np.expm1(-fall))


def own_point(history: History) -> Floats:
    """(objectives,): best checkpoint of the trial asked about, more is better, as reported."""
    assert history.own is not None
    point: Floats = history.own.known.copy()
    point[history.observed] = history.own.best[-1]
    return point


def pace(history: History, scale: Scale) -> float:
    """Hypervolume a step that the study's recent trials added; 0 while there are too few."""
    ended = history.ended
    if len(ended) < PACE_LEAST:
        return 0.0
    recent = max(RECENT_LEAST, int(RECENT_SHARE * len(ended)))
    points = scale.transform(ended.points)
    older = points[:-recent][ended.feasible[:-recent]]
    points = points[ended.feasible]
    now = pareto.volume(points[pareto.members(points)], scale.reference)
    before = pareto.volume(older[pareto.members(older)], scale.reference) if len(older) else 0.0
    steps = np.exp(log_steps(ended.last[-recent:], history.grid)).sum()
    return (now - before) / max(float(steps), 1.0)
