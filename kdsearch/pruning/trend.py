"""What trials' parameters and early errors say about how fast their curves fall: Bayesian linear regression."""

from __future__ import annotations

import numpy as np

from kdsearch.pruning.history import Floats

PRECISIONS = np.array([0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 1000.0])  # of a slope's prior, in units of the noise's
TINY = 1e-12


def differences(inputs: Floats, targets: Floats, weights: Floats, apart: Floats) -> tuple[Floats, Floats]:
    """Return how much targets are expected to differ between inputs that are so far apart, and the deviation.

    Linear regression with a flat prior of the intercept, a normal one of the slopes and the noise integrated out; the
    result is averaged over `PRECISIONS` by their marginal likelihood (Bishop, "Pattern recognition and machine
    learning", 2006, sections 3.3 to 3.5). Where inputs explain nothing, the expected difference is near 0.

    Args:
        inputs: (observations, columns), at least two observations.
        targets: (observations,).
        weights: (observations,), above 0; only their proportions matter.
        apart: (differences, columns).

    Returns:
        (differences,) each.
    """
    share = weights / weights.mean()
    root = np.sqrt(share)
    a = (inputs - np.average(inputs, axis=0, weights=share)) * root[:, None]
    b = (targets - np.average(targets, weights=share)) * root
    powers, axes = np.linalg.eigh(a.T @ a)
    powers = np.maximum(powers, 0.0)
    along, seen = apart @ axes, axes.T @ (a.T @ b)
    kept = powers + PRECISIONS[:, None]  # (precisions, columns)
    total, freedom = float(b @ b), len(b) - 1
    rest = np.maximum(total - (seen**2 / kept).sum(axis=1), TINY * total) + TINY
    evidence = 0.5 * np.log(PRECISIONS[:, None] / kept).sum(axis=1) - 0.5 * freedom * np.log(rest)
    chance = np.exp(evidence - evidence.max())
    chance /= chance.sum()
    means = (seen / kept) @ along.T  # (precisions, differences)
    variances = (rest / freedom)[:, None] * ((1.0 / kept) @ (along**2).T)
    mean: Floats = chance @ means
    return mean, np.sqrt(chance @ (variances + (means - mean) ** 2))
