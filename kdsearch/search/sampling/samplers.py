"""Samplers by name, with each trial's draws seeded from (seed, trial number)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import optuna
import torch
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from kdsearch.spec import Range, StudySpec
from kdsearch.system import machine

LEAST_ON_CUDA = 64  # images a batch

SAMPLERS: dict[str, Callable[[int | None], BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
}


def make(name: str, seed: int | None) -> BaseSampler:
    """Return the sampler of that name; with a seed its draws repeat trial by trial, resumed or not."""
    return SAMPLERS[name](None) if seed is None else SeededSampler(SAMPLERS[name], seed)


class WrappedSampler(BaseSampler):
    """Delegates to an inner sampler; a base class for samplers that change part of it."""

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


def least_batch(spec: StudySpec, device: torch.device) -> int | None:
    """Return the batch size below which a sampler draws none on a device; None: it draws whatever the space has.

    A step on CUDA takes its launches' time however few images it has, so a small batch makes an epoch many times as
    long. The space itself stays as it is, with anchors and with studies that CPUs work on; where all of its sizes are
    small, they are what the user wants.
    """
    dimension = spec.space["batch_size"]
    if device.type != "cuda" or not isinstance(dimension, Range | list):
        return None
    ends = dimension if isinstance(dimension, list) else [dimension.low, dimension.high]
    sizes = [float(size) for size in ends]
    return LEAST_ON_CUDA if min(sizes) < LEAST_ON_CUDA <= max(sizes) else None


class LargeBatches(WrappedSampler):
    """Draws a batch size anew, evenly, where the inner sampler's is below the least one for the device."""

    def __init__(self, inner: BaseSampler, least: int, seed: int | None) -> None:
        super().__init__(inner)
        self._least, self._seed = least, machine.fresh_seed() if seed is None else seed
        self._random = Random(self._seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._random = Random(machine.derive_seed("batch", self._seed, trial.number))
        super().before_trial(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = super().sample_relative(study, trial, search_space)
        return {name: self._large(name, value, search_space[name]) for name, value in drawn.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        value = super().sample_independent(study, trial, param_name, param_distribution)
        return self._large(param_name, value, param_distribution)

    def _large(self, name: str, value: Any, distribution: BaseDistribution) -> Any:
        if name != "batch_size" or value >= self._least:
            return value
        if isinstance(distribution, CategoricalDistribution):
            offered: Sequence[Any] = distribution.choices
        else:
            assert isinstance(distribution, IntDistribution)
            offered = range(distribution.low, distribution.high + 1, distribution.step)
        sizes = [size for size in offered if size >= self._least]
        return self._random.choice(sizes) if sizes else value


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
        self._factory, self._seed = factory, seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        seed = machine.derive_seed("sampler", self._seed, trial.number) % 2**32
        self._inner = self._factory(seed)
        super().before_trial(study, trial)
