"""A model of the error over parameters and steps, learnt from a study's checkpoints, to choose among candidates."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

Floats = NDArray[np.float64]

LENGTHS = (0.35, 0.7, 1.4)  # of the kernel, where a parameter's whole range is 1
NOISES = (0.003, 0.02, 0.1)  # share of the variance that parameters do not explain
LINEAR = 0.5  # weight of the straight trend beside the bumps
GROWN = 7 / 6  # lengths and noise are chosen anew when there are so many times more observations


class GaussianProcess:
    """Regression with a squared-exponential and a linear kernel; length, noise and scale by marginal likelihood.

    Rasmussen and Williams, "Gaussian processes for machine learning", 2006, chapters 2 and 5: of a few lengths and
    noises the likeliest, the scale integrated out. Exact, for a study has hundreds of trials, not millions. Length and
    noise are chosen anew whenever the observations have grown by a sixth, by those up to there: so a model that was
    fitted all along and one that is fitted once, to the same observations, agree.
    """

    def __init__(self) -> None:
        self._chosen = (LENGTHS[0], NOISES[0])
        self._chosen_at = 0  # observations by which these were chosen

    def fit(self, inputs: Floats, targets: Floats) -> None:
        """Learns from observations.

        Args:
            inputs: (observations, columns), each column within about 0 to 1.
            targets: (observations,).
        """
        self._mean, self._unit = float(targets.mean()), float(targets.std()) or 1.0
        scaled = (targets - self._mean) / self._unit
        settled = _settled(len(targets))
        if settled != self._chosen_at:
            pairs = [(length, noise) for length in LENGTHS for noise in NOISES]
            early = (targets[:settled] - targets[:settled].mean()) / (float(targets[:settled].std()) or 1.0)
            likelihoods = [self._solve(inputs[:settled], early, *pair) for pair in pairs]
            self._chosen, self._chosen_at = pairs[int(np.argmax(likelihoods))], settled
        self._inputs = inputs
        self._solve(inputs, scaled, *self._chosen)

    def _solve(self, inputs: Floats, scaled: Floats, length: float, noise: float) -> float:
        """Factorises and returns the log likelihood, but for a constant."""
        covariance = _kernel(inputs, inputs, length)
        covariance[np.diag_indices(len(scaled))] += noise
        self._factor = np.linalg.cholesky(covariance)
        half = solve_triangular(self._factor, scaled, lower=True, check_finite=False)
        self._weights = solve_triangular(self._factor, half, lower=True, trans="T", check_finite=False)
        self._variance = max(float(half @ half) / len(scaled), 1e-12)
        return float(-0.5 * len(scaled) * np.log(self._variance) - np.log(np.diag(self._factor)).sum())

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation, without the noise of an observation.

        Args:
            inputs: (candidates, columns).

        Returns:
            (candidates,) each.
        """
        cross = _kernel(inputs, self._inputs, self._chosen[0])
        mean = self._mean + self._unit * (cross @ self._weights)
        explained = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        own = 1.0 + LINEAR * (inputs**2).sum(axis=1)
        variance = np.maximum(own - (explained**2).sum(axis=0), 1e-9) * self._variance
        return mean, self._unit * np.sqrt(variance)


def _settled(count: int) -> int:
    """The last of 2, 3, 4, 5, 6, 7, 9, ... (each a sixth more, rounded up) that is not above a count."""
    settled, following = 1, 2
    while following <= count:
        settled, following = following, math.ceil(following * GROWN)
    return settled


def _kernel(a: Floats, b: Floats, length: float) -> Floats:
    """(rows of a, rows of b)."""
    inner = a @ b.T
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * inner
    found: Floats = np.exp(-0.5 * np.maximum(squared, 0.0) / length**2) + LINEAR * inner
    return found
