"""Better proposals: of several candidates that a sampler draws, the one expected to add most to the front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtri

from kdsearch import pareto
from kdsearch.pruning.forecast import log_steps
from kdsearch.pruning.history import Floats, History, Stack
from kdsearch.pruning.scale import Scale, make_scale
from kdsearch.records import Config
from kdsearch.search.sampling.samplers import WrappedSampler
from kdsearch.search.sampling.surrogate import GaussianProcess

CANDIDATES = 24
SHARE = 1 / 24  # of the candidates: one, as long as the inner sampler's models are the slow part
FIXED = "fixed_params"  # Optuna's system attribute of an enqueued trial
FEWEST = 5  # trials with a checkpoint, without which there is nothing to choose by
MOST = 400  # trials that the surrogate learns from: the latest, and the front
QUANTILES = ndtri((np.arange(9) + 0.5) / 9)  # of a normal distribution, for its expectations


class Draft:
    """Stands in for a trial while a candidate is drawn: keeps parameters and distributions, stores nothing."""

    def __init__(self, sampler: BaseSampler, study: Study, trial: FrozenTrial) -> None:
        self._sampler, self._study, self._trial = sampler, study, trial
        self._relative_space = sampler.infer_relative_search_space(study, trial)
        self._relative = sampler.sample_relative(study, trial, self._relative_space)
        self.parameters: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def _draw(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self.parameters:
            return self.parameters[name]
        if name in self._relative and self._relative_space.get(name) == distribution:
            value = self._relative[name]
        else:
            value = self._sampler.sample_independent(self._study, self._trial, name, distribution)
        self.parameters[name], self.distributions[name] = value, distribution
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """As a trial's."""
        return int(self._draw(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """As a trial's."""
        return float(self._draw(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As a trial's."""
        return self._draw(name, CategoricalDistribution(choices))


class ProposalSampler(WrappedSampler):
    """Draws several candidates from another sampler, and proposes the one with the highest expected gain.

    The gain is that of hypervolume (Emmerich, Giannakoglou, Naujoks, IEEE TEC 2006), with one objective known: a
    candidate costs neither training nor timing. The other is expected from a Gaussian process over parameters and
    steps, learnt from every trial's best checkpoint. One sampler serves one thread.

    Args:
        inner: draws a share of the candidates, and trials where there is nothing to choose by.
        random: draws the others: a sampler that models the study itself draws slowly, and much the same.
        draw: from a draft to a configuration, by the draft's `suggest_` methods.
        known: from a study and a configuration to the values of the known objectives in their order (what it has or may
            have); None: nobody can tell yet; if of no candidate, the inner sampler's draw is taken.
        steps: how long a configuration is trained.
        cost: what a step of an ended trial cost (seconds, say), or None where that is not known. With it, the gain is
            divided by the cost expected of a candidate's step ("expected improvement per second": Snoek, Larochelle,
            Adams, NeurIPS 2012).
        candidates: drawn for a trial.
        share: of the candidates, that the inner sampler draws.
    """

    def __init__(
        self,
        inner: BaseSampler,
        random: BaseSampler,
        draw: Callable[[Draft], Config],
        known: Callable[[Study, Config], Sequence[float] | None],
        *,
        steps: Callable[[Config], int],
        cost: Callable[[FrozenTrial], float | None] | None = None,
        candidates: int = CANDIDATES,
        share: float = SHARE,
    ) -> None:
        super().__init__(inner)
        self._random = random
        self._draw, self._known, self._steps, self._cost = draw, known, steps, cost
        self._own = max(1, round(share * candidates))
        self._others = candidates - self._own
        self._chosen: Draft | None = None
        self._study: Study | None = None
        self._history, self._model, self._costs = History(), GaussianProcess(), GaussianProcess()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Forgets the last trial's choice."""
        self._chosen = None
        super().before_trial(study, trial)
        self._random.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All of the chosen candidate; what the inner sampler says where nothing is chosen."""
        if not trial.system_attrs.get(FIXED):
            self._chosen = self._choose(study, trial)
        if self._chosen is None:
            return super().infer_relative_search_space(study, trial)
        return self._chosen.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The chosen candidate."""
        if self._chosen is None:
            return super().sample_relative(study, trial, search_space)
        return self._chosen.parameters

    def _choose(self, study: Study, trial: FrozenTrial) -> Draft | None:
        if study is not self._study:
            self._study, self._history = study, History()
            self._model, self._costs = GaussianProcess(), GaussianProcess()
        self._history.update(study, trial.number)
        seen = self._history.curves()
        if len(seen) < FEWEST:
            return None
        drafts = [Draft(self._inner, study, trial) for _ in range(self._own)]
        drafts += [Draft(self._random, study, trial) for _ in range(self._others)]
        configs = [self._draw(draft) for draft in drafts]
        known = [self._known(study, config) for config in configs]
        possible = [index for index, values in enumerate(known) if values is not None]
        if not possible:
            return drafts[0]
        points = np.array([known[index] for index in possible], dtype=np.float64)
        parameters = [drafts[index].parameters for index in possible]
        gains = self._gains(seen, parameters, points, [self._steps(configs[index]) for index in possible])
        return drafts[possible[int(np.argmax(gains / self._expected_costs(study, parameters)))]]

    def _expected_costs(self, study: Study, parameters: Sequence[Mapping[str, Any]]) -> Floats:
        """Of a step of each candidate; (candidates,), all 1 where costs do not matter or are not known yet."""
        seen = []
        if self._cost is not None:
            for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)):
                cost = self._cost(trial)
                if cost is not None and cost > 0:
                    seen.append((trial.params, cost))
        if len(seen) < FEWEST:
            return np.ones(len(parameters))
        inputs = self._history.features([params for params, _ in seen])
        self._costs.fit(inputs, np.log([cost for _, cost in seen]))
        expected: Floats = np.exp(self._costs.predict(self._history.features(parameters))[0])
        return expected

    def _gains(self, seen: Stack, params: Sequence[Mapping[str, Any]], known: Floats, steps: Sequence[int]) -> Floats:
        """Expected gain of each candidate; (candidates,)."""
        history = self._history
        assert history.observed is not None
        points = np.insert(known, history.observed, 0.0, axis=1) * history.sign  # (candidates, objectives)
        scale = _scale(history, seen, points)
        front = scale.transform(seen.points[seen.feasible])
        front = front[pareto.members(front)]
        self._learn(scale, _latest(seen))
        clock = log_steps(np.array(steps), history.grid) / (log_steps(history.grid, history.grid)[-1] or 1.0)
        mean, deviation = self._model.predict(np.column_stack([history.features(params), clock]))
        values = scale.values(mean[:, None] + deviation[:, None] * QUANTILES)  # (candidates, quantiles)
        hoped = np.repeat(scale.transform(points), len(QUANTILES), axis=0)
        hoped[:, history.observed] = values.reshape(-1)
        gains = pareto.gains(front, hoped, scale.reference)
        expected: Floats = gains.reshape(len(points), -1).mean(axis=1)
        return expected

    def _learn(self, scale: Scale, seen: Stack) -> None:
        """The log error of every trial's best checkpoint, at its last step."""
        grid = self._history.grid
        clock = log_steps(seen.last, grid) / (log_steps(grid, grid)[-1] or 1.0)
        errors = scale.errors(seen.points[:, scale.observed])
        self._model.fit(np.column_stack([seen.features, clock]), errors)


def _latest(seen: Stack) -> Stack:
    if len(seen) <= MOST:
        return seen
    kept = np.union1d(np.arange(len(seen) - MOST, len(seen)), pareto.members(seen.points))
    return seen.where(kept)


def _scale(history: History, seen: Stack, candidates: Floats) -> Scale:
    assert history.observed is not None
    points = candidates.copy()
    points[:, history.observed] = seen.points[:, history.observed].max()
    return make_scale(
        np.vstack([seen.points, points]), history.sign, history.observed, lowest=float(np.nanmin(seen.best))
    )
