"""Samplers by name, with each trial's draws seeded from (seed, trial number)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from kdsearch.system import machine

SAMPLERS: dict[str, Callable[[int | None], BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
}


def make(name: str, seed: int | None) -> BaseSampler:
    """Return the sampler of that name; with a seed its draws repeat trial by trial, resumed or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](None) if seed is None else SeededSampler(SAMPLERS[name], seed)


class WrappedSampler(BaseSampler):
    """Delegates to an inner sampler; a base class for samplers that change part of it.

    Args:
        inner: the sampler that does the work.
    """

    def __init__(self, inner: BaseSampler) -> None:
        self._inner = inner

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(study, trial, state, values)


class SeededSampler(WrappedSampler):
    """Draws each trial with a sampler of its own, seeded from (seed, trial number).

    A sampler that is seeded once repeats its first draws when a study is resumed, and its draws depend on how many
    trials this process has drawn before.

    Args:
        factory: from a seed to a sampler whose state, if any, is in the storage.
        seed: of the study.
    """

    def __init__(self, factory: Callable[[int | None], BaseSampler], seed: int) -> None:
        super().__init__(factory(seed % 2**32))
        self._factory = factory
        self._seed = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed the draws of this trial."""
        seed = machine.derive_seed("sampler", self._seed, trial.number) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._inner = self._factory(seed)
        super().before_trial(study, trial)
