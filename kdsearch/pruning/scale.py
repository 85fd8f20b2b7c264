"""Scales on which objectives are compared: ranks if lopsided, errors as distances from an ideal; units do not count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdsearch.pruning import settings

Floats = NDArray[np.float64]

LOPSIDED = 0.25  # of the range: a known objective whose median is nearer to an end is compared by rank
IDEAL = 0.25  # of the span: distance of the ideal beyond the best seen
MARGIN = 0.1  # of the span: distance of the reference below the worst seen
LEAST_ERROR = 1e-4  # share of the largest error: lower limit before the logarithm


@dataclass(frozen=True)
class Scale:
    """Scales of the objectives; by default invariant under increasing affine maps of each."""

    sign: Floats  # (objectives,), 1 or -1
    observed: int  # index of the objective observed step by step
    log: NDArray[np.bool_]  # (objectives,), whether the logarithm is taken
    knots: tuple[Floats | None, ...]  # by objective: the values that are placed at equal distances (its ranks), or None
    span: Floats  # (objectives,), of the transformed values
    ideal: float  # of the observed objective, more is better
    reference: Floats  # (objectives,), transformed: reference point of the hypervolume
    unit: float  # the largest error, that of the observed objective's reference, as reported

    def transform(self, points: Floats) -> Floats:
        """Transform points, (points, objectives), as reported, to the scale; more is better in both."""
        return _transform(points, self.sign, self.log, self.knots)

    def errors(self, values: Floats) -> Floats:
        """Return the logarithm of the distance from the ideal, for observed values of any shape."""
        return np.log(np.maximum(self.ideal - values, LEAST_ERROR * self.unit))

    def values(self, errors: Floats) -> Floats:
        """Return the observed values of log errors."""
        return self.ideal - np.exp(errors)


def _transform(points: Floats, sign: Floats, log: NDArray[np.bool_], knots: Sequence[Floats | None] = ()) -> Floats:
    found = np.array(points, dtype=np.float64)
    found[:, log] = sign[log] * np.log10(sign[log] * found[:, log])
    for index, values in enumerate(knots):
        if values is not None:
            found[:, index] = np.interp(found[:, index], values, np.linspace(0.0, 1.0, len(values)))
    return found


def _knots(values: Floats) -> Floats | None:
    """Return the distinct values of a lopsided objective, ascending; None if it is not lopsided."""
    knots = np.unique(values)
    if len(knots) < 3:
        return None
    place = (float(np.median(values)) - knots[0]) / (knots[-1] - knots[0])
    return None if LOPSIDED < place < 1 - LOPSIDED else knots


def make_scale(
    points: Floats,
    sign: Floats,
    observed: int,
    *,
    lowest: float,
    log: Sequence[int] | None = None,
    reference: Sequence[float] | None = None,
    ideal: float | None = None,
) -> Scale:
    """Make a scale from what was seen and from the user's settings.

    Args:
        points: (points, objectives), as reported, more is better, finite.
        sign: (objectives,), 1 or -1.
        observed: index of the objective observed step by step.
        lowest: the worst observed value of any checkpoint, more is better.
        log: indices of objectives on a log scale; None: none, but lopsided known ones (the median in an outer quarter
            of the range) are compared by rank, if no reference is given.
        reference: in the objectives' own units and directions; None: the worst seen, less a tenth of the span.
        ideal: of the observed objective; None: the best seen plus a quarter of the span.

    Raises:
        ValueError: an objective on a log scale, or its reference, is not positive; the reference has another length;
            `log` holds something that is not an objective's index.
    """
    settings.check_fit(len(sign), log, reference)
    logs = np.isin(np.arange(len(sign)), [] if log is None else list(log))
    _check_positive((sign * points)[:, logs])
    by_rank = log is None and reference is None
    knots = tuple(_knots(column) if by_rank and i != observed else None for i, column in enumerate(points.T))
    seen = _transform(points, sign, logs, knots)
    low, high = seen.min(axis=0), seen.max(axis=0)
    worst, best = min(float(points[:, observed].min()), lowest), float(points[:, observed].max())  # as reported
    low[observed] = _transform(np.where(np.arange(len(sign)) == observed, worst, points[:1]), sign, logs)[0, observed]
    span = np.where(high > low, high - low, np.maximum(np.abs(high), 1.0) * 1e-3)
    if reference is None:
        base = low - MARGIN * span
        unit = worst - MARGIN * (best - worst)
    else:
        told = np.array(reference, dtype=np.float64)
        _check_positive(told[logs])
        base = _transform((sign * told)[None], sign, logs)[0]
        unit = float(sign[observed] * told[observed])
    target = best + IDEAL * max(best - worst, 1e-12) if ideal is None else float(sign[observed] * ideal)
    return Scale(sign, observed, logs, knots, span, target, base, max(target - unit, 1e-12))


def _check_positive(values: Floats) -> None:
    if (values <= 0).any():
        raise ValueError(f"an objective on a log scale must be above 0 (got {float(values.min())})")
