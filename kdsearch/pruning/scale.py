"""How objectives are compared: logarithms where they span decades, errors counted from an ideal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DECADE = 10.0  # a positive objective that is known beforehand and spans more than this is taken on a log scale
MARGIN = 0.1  # of the span: how far the reference lies below the worst seen, the ideal beyond the best
LEAST_ERROR = 1e-4  # share of the largest error: a smaller one is no smaller as a logarithm


@dataclass(frozen=True)
class Scale:
    """How objectives are compared: logarithms where they span decades, errors counted from an ideal.

    Attributes:
        sign: (objectives,), 1 or -1.
        observed: index of the objective observed step by step.
        log: (objectives,), whether the logarithm is taken.
        low, span: (objectives,), of the known objectives' transformed values.
        ideal: of the observed objective, more is better.
        reference: (objectives,), transformed: where hypervolume is counted from.
        unit: the largest error: of the observed objective's reference, as reported.
    """

    sign: Floats
    observed: int
    log: NDArray[np.bool_]
    low: Floats
    span: Floats
    ideal: float
    reference: Floats
    unit: float

    def transform(self, points: Floats) -> Floats:
        """(points, objectives) from as reported, more is better, to the scale; still more is better."""
        return _transform(points, self.sign, self.log)

    def errors(self, values: Floats) -> Floats:
        """Logarithm of the distance from the ideal, of observed values (any shape)."""
        return np.log(np.maximum(self.ideal - values, LEAST_ERROR * self.unit))

    def values(self, errors: Floats) -> Floats:
        """Observed values of log errors."""
        return self.ideal - np.exp(errors)


def _transform(points: Floats, sign: Floats, log: NDArray[np.bool_]) -> Floats:
    found = np.array(points, dtype=np.float64)
    found[:, log] = sign[log] * np.log10(sign[log] * found[:, log])
    return found


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
    """A scale from what was seen and from what the user knows.

    Args:
        points: (points, objectives), as reported, more is better, finite.
        sign: (objectives,), 1 or -1.
        observed: index of the objective observed step by step.
        lowest: the worst observed value of any checkpoint, more is better.
        log: indices of objectives on a log scale; None: the known ones that are positive and span a factor of ten.
        reference: in the objectives' own units and directions; None: the worst seen, less a tenth of the span.
        ideal: of the observed objective; None: 1 for values from 0 to 1 to be maximised, 0 for positive ones to be
            minimised, else the best seen and a tenth of the span.

    Raises:
        ValueError: an objective on a log scale, or its reference, is not positive; the reference is of another length.
    """
    if reference is not None and len(reference) != len(sign):
        raise ValueError(f"reference must hold one for each of the {len(sign)} objectives (got {len(reference)})")
    raw = sign * points
    if log is None:
        wide = (raw > 0).all(axis=0) & (raw.max(axis=0) > DECADE * np.maximum(raw.min(axis=0), 1e-300))
        logs = wide & (np.arange(len(sign)) != observed)
        if reference is not None:
            logs &= np.array(reference, dtype=np.float64) > 0
    else:
        logs = np.isin(np.arange(len(sign)), list(log))
    if (raw[:, logs] <= 0).any():
        raise ValueError(f"an objective on a log scale must be above 0 (got {float(raw[:, logs].min())})")
    seen = _transform(points, sign, logs)
    low, high = seen.min(axis=0), seen.max(axis=0)
    worst, best = min(float(points[:, observed].min()), lowest), float(points[:, observed].max())  # as reported
    low[observed] = _transform(np.where(np.arange(len(sign)) == observed, worst, points[:1]), sign, logs)[0, observed]
    span = np.where(high > low, high - low, np.maximum(np.abs(high), 1.0) * 1e-3)
    if reference is None:
        base = low - MARGIN * span
        unit = worst - MARGIN * (best - worst)
    else:
        told = np.array(reference, dtype=np.float64)
        if (told[logs] <= 0).any():
            raise ValueError(f"an objective on a log scale must be above 0 (got {float(told[logs].min())})")
        base = _transform((sign * told)[None], sign, logs)[0]
        unit = float(sign[observed] * told[observed])
    if ideal is None:
        sign_of = sign[observed]
        if sign_of > 0 and worst >= 0 and best <= 1:
            target = 1.0
        elif sign_of < 0 and best <= 0:
            target = 0.0
        else:
            target = best + MARGIN * max(best - worst, 1e-3 * max(abs(best), 1.0))
    else:
        target = float(sign[observed] * ideal)
    return Scale(sign, observed, logs, low, span, target, base, max(target - unit, 1e-12))
