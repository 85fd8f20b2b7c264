"""Models of the two objectives of candidates: a Gaussian process of the error, an interpolation of the ratio."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from optuna import Study
from optuna.trial import TrialState
from scipy.linalg import solve_triangular

from kdsearch import networks
from kdsearch.measure import flops
from kdsearch.pruning.history import Floats
from kdsearch.records import Attr, Config
from kdsearch.search.failures import is_exhausted
from kdsearch.search.space import architecture_key
from kdsearch.search.workshop import Workshop

Bools = NDArray[np.bool_]

LENGTHS = (0.2, 0.35, 0.7, 1.4, 3.0, 10.0)  # of the kernel, relative to a parameter's whole range of 1
START = 0.7
SWEEPS = 2  # over the columns, each of which gets the likeliest length
LEARN_FROM = 150  # maximum number of latest observations that decide lengths and noise
NOISES = (0.003, 0.02, 0.1)  # share of the variance that parameters do not explain
LINEAR = 0.5  # weight of the linear kernel beside the squared exponential
GROWN = 7 / 6  # lengths and noise are chosen again when the observations have grown by this factor
NEW = 24  # architectures whose operations are counted per trial


class GaussianProcess:
    """Regression with a squared-exponential and a linear kernel; length, noise and scale by marginal likelihood.

    Rasmussen and Williams, "Gaussian processes for machine learning", 2006, chapters 2 and 5. Of a few lengths per
    column (an irrelevant one gets a long one) and a few noises the likeliest are chosen column by column, with the
    scale integrated out. The regression is exact, as a study has only hundreds of trials. Lengths and noise are chosen
    again whenever the observations have grown by a sixth, from those up to that point, whether or not the regression
    still uses them: so a model fitted incrementally and one fitted once to the same observations agree.
    """

    def __init__(self) -> None:
        self._lengths = np.full(0, START)
        self._noise = NOISES[1]
        self._chosen_at = 0  # number of observations at the last choice

    def fit(self, inputs: Floats, targets: Floats, used: Bools | None = None) -> None:
        """Fit the model to observations.

        Args:
            inputs: (observations, columns), each column within about 0 to 1; earlier calls' come first.
            targets: (observations,).
            used: (observations,), those of the regression; None: all.
        """
        settled = _settled(len(targets))
        if settled != self._chosen_at or len(self._lengths) != inputs.shape[1]:
            early = slice(max(0, settled - LEARN_FROM), settled)
            few = targets[early]
            self._choose(inputs[early], (few - few.mean()) / (float(few.std()) or 1.0))
            self._chosen_at = settled
        if used is not None:
            inputs, targets = inputs[used], targets[used]
        self._mean, self._unit = float(targets.mean()), float(targets.std()) or 1.0
        self._inputs = inputs
        self._solve(inputs, (targets - self._mean) / self._unit, self._lengths, self._noise)

    def _choose(self, inputs: Floats, scaled: Floats) -> None:
        """Choose lengths and noise one after the other, each the likeliest with the others fixed."""
        lengths, noise = np.full(inputs.shape[1], START), NOISES[1]
        for _ in range(SWEEPS):
            noise = NOISES[int(np.argmax([self._solve(inputs, scaled, lengths, other) for other in NOISES]))]
            for column in range(len(lengths)):
                tried = np.repeat(lengths[None], len(LENGTHS), axis=0)
                tried[:, column] = LENGTHS
                lengths = tried[int(np.argmax([self._solve(inputs, scaled, one, noise) for one in tried]))]
        self._lengths, self._noise = lengths, noise

    def _solve(self, inputs: Floats, scaled: Floats, lengths: Floats, noise: float) -> float:
        """Factorise the kernel matrix; return the log likelihood up to a constant."""
        covariance = _kernel(inputs, inputs, lengths)
        covariance[np.diag_indices(len(scaled))] += noise
        self._factor = np.linalg.cholesky(covariance)
        half = solve_triangular(self._factor, scaled, lower=True, check_finite=False)
        self._weights = solve_triangular(self._factor, half, lower=True, trans="T", check_finite=False)
        self._variance = max(float(half @ half) / len(scaled), 1e-12)
        return float(-0.5 * len(scaled) * np.log(self._variance) - np.log(np.diag(self._factor)).sum())

    def predict(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation, without the noise of an observation.

        Args:
            inputs: (candidates, columns).

        Returns:
            (candidates,) each.
        """
        cross = _kernel(inputs, self._inputs, self._lengths)
        mean = self._mean + self._unit * (cross @ self._weights)
        explained = solve_triangular(self._factor, cross.T, lower=True, check_finite=False)
        own = 1.0 + LINEAR * ((START / self._lengths * inputs) ** 2).sum(axis=1)
        variance = np.maximum(own - (explained**2).sum(axis=0), 1e-9) * self._variance
        return mean, self._unit * np.sqrt(variance)


def _settled(count: int) -> int:
    """Return the largest of 2, 3, 4, 5, 6, 7, 9, ... (each a sixth more, rounded up) that is at most a count."""
    settled, following = 1, 2
    while following <= count:
        settled, following = following, math.ceil(following * GROWN)
    return settled


def _kernel(a: Floats, b: Floats, lengths: Floats) -> Floats:
    """Return the kernel matrix, (rows of a, rows of b); the linear part also scales columns by their lengths."""
    a, b = a / lengths, b / lengths
    inner = a @ b.T
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * inner
    found: Floats = np.exp(-0.5 * np.maximum(squared, 0.0)) + LINEAR * START**2 * inner
    return found


class LikelyRatio:
    """Estimates inference ratios from those that a study has timed.

    A timed architecture has its ratio. Otherwise the log ratio is interpolated over the log of the counted operations'
    ratio, and extrapolated along the last two timed ones.
    """

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._teacher = float(flops.count(workshop.teacher.network, workshop.split.example(1)))
        self._counted: dict[str, float] = {}

    def __call__(self, study: Study, configs: Sequence[Config]) -> list[tuple[float] | None]:
        """Return the likely ratio of each configuration; None if nothing was timed yet or it must not be proposed.

        Counting takes time, so at most `NEW` architectures are counted for the first time; the others are None as well.
        """
        trials = study.get_trials(deepcopy=False)
        timed: dict[str, float] = {}
        known: dict[float, float] = {}
        for trial in trials:
            ratio, other = trial.user_attrs.get(Attr.RATIO), trial.user_attrs.get(Attr.CONFIG)
            if ratio is not None and isinstance(other, dict):
                timed.setdefault(architecture_key(other), float(ratio))
                known[self.counted(other)] = float(ratio)
        failed = any(trial.state == TrialState.FAIL for trial in trials)
        found: list[tuple[float] | None] = []
        new = 0
        for config in configs:
            key = architecture_key(config)
            new += key not in timed and key not in self._counted
            if not known or (failed and is_exhausted(study, config)):
                found.append(None)
            elif key in timed:
                found.append((timed[key],))
            elif key in self._counted or new <= NEW:
                found.append((interpolated(self.counted(config), known),))
            else:
                found.append(None)
        return found

    def counted(self, config: Config) -> float:
        """Return the teacher's operations / the student's, counted without allocating weights."""
        key = architecture_key(config)
        if key not in self._counted:
            family, split = self._workshop.spec.student.family, self._workshop.split
            self._counted[key] = self._teacher / _operations(family, key, split.shape, len(split.classes))
        return self._counted[key]


@cache
def _operations(family: str, key: str, shape: tuple[int, int, int], classes: int) -> int:
    """Return the operations of a student (by its `architecture_key`), counted once a process: it takes milliseconds."""
    with torch.device("meta"):
        student = networks.student_family(family).build(json.loads(key), shape, classes)
        return flops.count(student, torch.zeros(1, *shape))


def interpolated(counted: float, known: dict[float, float]) -> float:
    """Interpolate a ratio over at least one ratio of counted operations, piecewise linear on logarithmic axes."""
    counts = sorted(known)
    if len(counts) == 1:
        return known[counts[0]] * counted / counts[0]
    logs = np.log10(counts), np.log10([known[count] for count in counts])
    inside = float(np.interp(math.log10(counted), *logs))
    for end, inner in ((0, 1), (-1, -2)):
        beyond = math.log10(counted) - logs[0][end]
        if (beyond < 0) if end == 0 else (beyond > 0):
            slope = (logs[1][end] - logs[1][inner]) / (logs[0][end] - logs[0][inner])
            inside = float(logs[1][end] + min(max(slope, 0.0), 1.0) * beyond)
    return 10**inside
