"""Proposals: of several candidates that a sampler draws, the one with the highest expected gain of the front."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtri

from kdsearch import pareto
from kdsearch.pruning import forecast
from kdsearch.pruning.forecast import log_steps
from kdsearch.pruning.history import Floats, History, Stack
from kdsearch.pruning.pruner import ParetoPruner
from kdsearch.pruning.scale import Scale, make_scale
from kdsearch.records import FIXED, Attr, Config
from kdsearch.search import resuming
from kdsearch.search.resuming import Paused
from kdsearch.search.run_options import CANDIDATES
from kdsearch.search.sampling.samplers import WrappedSampler
from kdsearch.search.sampling.surrogate import Bools, GaussianProcess
from kdsearch.system import machine

NEAR = 1 / 3  # of the candidates: moves from members of the front
MOVE, CHANGED = 0.1, 0.4  # standard deviation of a move as a share of the range, and probability that a parameter moves
MODEL, SAMPLER, RANDOM, RESUMED = "model", "sampler", "random", "resumed"  # values of the attribute `proposed_by`
LATELY = 30  # latest trials whose gains decide the shares of the two proposers
MODEL_SHARE = 0.75  # until anything was gained
LEAST_SHARE = 0.1  # of the trials, for each of the two
FEWEST = 5  # trials with a checkpoint, required for a choice
MOST = 400  # checkpoints from which the surrogate learns: those of the latest trials, and of the front
SHARES = (16, 8, 4, 2, 1)  # of a trial seen to its end, the surrogate learns this part of its steps
QUANTILES = ndtri((np.arange(9) + 0.5) / 9)  # of the normal distribution, for expectations


class Draft:
    """Stands in for a trial while a candidate is drawn: holds parameters and distributions, stores nothing."""

    def __init__(self, sampler: BaseSampler, study: Study, trial: FrozenTrial) -> None:
        self._sampler, self._study, self._trial = sampler, study, trial
        self._relative_space = sampler.infer_relative_search_space(study, trial)
        self._relative = sampler.sample_relative(study, trial, self._relative_space)
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._suggest(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self._suggest(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._suggest(name, CategoricalDistribution(choices))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self.params:
            self.params[name], self.distributions[name] = self._drawn(name, distribution), distribution
        return self.params[name]

    def _drawn(self, name: str, distribution: BaseDistribution) -> Any:
        if name in self._relative and self._relative_space.get(name) == distribution:
            return self._relative[name]
        return self._independent(name, distribution)

    def _independent(self, name: str, distribution: BaseDistribution) -> Any:
        return self._sampler.sample_independent(self._study, self._trial, name, distribution)


class Near(Draft):
    """A candidate near a trial: some of its parameters are moved slightly, or redrawn if they have no order."""

    def __init__(
        self, sampler: BaseSampler, study: Study, trial: FrozenTrial, origin: Mapping[str, Any], random: Generator
    ) -> None:
        self._sampler, self._study, self._trial = sampler, study, trial
        self._origin, self._random = origin, random
        self.params, self.distributions = {}, {}

    def _drawn(self, name: str, distribution: BaseDistribution) -> Any:
        value = self._origin.get(name)
        if value is None or not distribution._contains(distribution.to_internal_repr(value)):
            return self._independent(name, distribution)
        return self._moved(name, value, distribution) if self._random.random() < CHANGED else value

    def _moved(self, name: str, value: Any, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            choices = distribution.choices
            if not all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
                return self._independent(name, distribution)
            ordered: list[Any] = sorted(choices)  # type: ignore[type-var]
            aside = 1 if self._random.random() < 0.5 else -1
            return ordered[min(max(ordered.index(value) + aside, 0), len(ordered) - 1)]
        assert isinstance(distribution, IntDistribution | FloatDistribution)
        low, high, step = distribution.low, distribution.high, distribution.step
        if high <= low:
            return value
        shift = float(self._random.normal(0.0, MOVE))
        moved = value * (high / low) ** shift if distribution.log else value + shift * (high - low)
        if step:
            least = step if round((moved - low) / step) == round((value - low) / step) else 0  # a move must change it
            moved = low + step * round((moved + (least if shift > 0 else -least) - low) / step)
        moved = min(max(moved, low), high)
        return int(moved) if isinstance(distribution, IntDistribution) else float(moved)


class ProposalSampler(WrappedSampler):
    """Draws several candidates from another sampler, and proposes the one with the highest expected gain.

    The gain is that of hypervolume (Emmerich, Giannakoglou, Naujoks, IEEE TEC 2006), with one objective known before
    training. The other is predicted by a Gaussian process over parameters and steps, fitted to checkpoints of all
    trials. A third of the candidates are members of the front moved slightly.

    The inner sampler's own draw competes with this choice: each proposes a share of the trials that follows the gain
    per step of its latest ones, so that the worse of the two costs little. Where the study's recent trials gained next
    to nothing, the trials that the pruner audits are drawn at random: of trials like those of the front, audits cannot
    show what pruning and choice overlook elsewhere. The attribute `proposed_by` names a trial's proposer. A sampler may
    be used by one thread only.

    Args:
        inner: draws one of the candidates, and trials while there is nothing to choose by.
        random: draws the others: a sampler that models the study draws slowly, and its draws are alike.
        draw: from a draft to a configuration, by the draft's `suggest_` methods.
        known: from a study and configurations to the measured or estimated values of each one's known objectives, in
            their order; None for a candidate: not known yet; if it is None for all, the inner sampler's draw is taken.
        steps: number of steps of a configuration's training.
        cost: cost per step of an ended trial (for example seconds), or None if unknown. With it, the gain is divided by
            the expected cost of a candidate's step ("expected improvement per second": Snoek, Larochelle, Adams,
            NeurIPS 2012).
        candidates: number drawn per trial.
        compete: whether some trials are the inner sampler's own draws.
        paused: trials that the pruner ended and that may be resumed instead, where that promises twice as much per step
            as the best candidate; such a trial's number is the attribute `resumes`. None: none.
        seed: of the moves and of the choice of proposer; None: a fresh one.
        log, ideal: see `scale.make_scale`.
    """

    def __init__(
        self,
        inner: BaseSampler,
        random: BaseSampler,
        draw: Callable[[Draft], Config],
        known: Callable[[Study, Sequence[Config]], Sequence[Sequence[float] | None]],
        *,
        steps: Callable[[Config], int],
        cost: Callable[[FrozenTrial], float | None] | None = None,
        candidates: int = CANDIDATES,
        compete: bool = True,
        paused: Paused | None = None,
        seed: int | None = None,
        log: Sequence[int] | None = None,
        ideal: float | None = None,
    ) -> None:
        super().__init__(inner)
        self._random = random
        self._draw, self._known, self._steps, self._cost = draw, known, steps, cost
        self._near = round(NEAR * (candidates - 1))
        self._others = candidates - 1 - self._near
        self._compete, self._paused = compete, paused
        self._seed = machine.fresh_seed() if seed is None else seed
        self._units: dict[str, Any] = {"log": log, "ideal": ideal}
        self._chosen: Draft | FrozenTrial | None = None
        self._study: Study | None = None
        self._history, self._model, self._costs = History(), GaussianProcess(), GaussianProcess()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._chosen = None
        super().before_trial(study, trial)
        self._random.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all parameters of the chosen candidate, or the inner sampler's space if none is chosen."""
        if not trial.system_attrs.get(FIXED):
            self._chosen = self._choose(study, trial)
        if self._chosen is None:
            return super().infer_relative_search_space(study, trial)
        return self._chosen.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if self._chosen is None:
            return super().sample_relative(study, trial, search_space)
        return self._chosen.params

    def _choose(self, study: Study, trial: FrozenTrial) -> Draft | FrozenTrial | None:
        if study is not self._study:
            self._study, self._history = study, History()
            self._model, self._costs = GaussianProcess(), GaussianProcess()
        self._history.update(study, trial.number)
        seen = self._history.curves()
        if len(seen) < FEWEST:
            return None
        random = np.random.default_rng(machine.derive_seed("proposals", self._seed, trial.number))
        if self._compete:
            by = self._proposer(study, trial, seen, random)
            study._storage.set_trial_user_attr(trial._trial_id, Attr.PROPOSED_BY, by)
            if by == RANDOM:
                draft = Draft(self._random, study, trial)
                self._draw(draft)
                return draft
            if by == SAMPLER:
                return None
        drafts = [Draft(self._inner, study, trial), *self._moves(study, trial, seen, random)]
        drafts += [Draft(self._random, study, trial) for _ in range(self._others)]
        configs = [self._draw(draft) for draft in drafts]
        known = self._known(study, configs)
        possible = [index for index, values in enumerate(known) if values is not None]
        if not possible:
            return drafts[0]
        points = self._points(np.array([known[index] for index in possible], dtype=np.float64))
        parameters = [drafts[index].params for index in possible]
        steps = [self._steps(configs[index]) for index in possible]
        scale = _scale(self._history, seen, points, self._units)
        gains = self._gains(scale, seen, parameters, points, steps)
        costs = self._expected_costs(study, parameters)
        best = int(np.argmax(gains / costs))
        return self._resumed(study, trial, scale, gains[best] / steps[best]) or drafts[possible[best]]

    def _proposer(self, study: Study, trial: FrozenTrial, seen: Stack, random: Generator) -> str:
        """Return who proposes a trial."""
        model = random.random() < self._share_of_model(study, seen)
        if isinstance(study.pruner, ParetoPruner) and study.pruner.audits(trial.number):
            scale = _scale(self._history, seen, seen.points, self._units)
            if forecast.stands_still(self._history, scale):
                return RANDOM
        return MODEL if model else SAMPLER

    def _resumed(self, study: Study, trial: FrozenTrial, scale: Scale, best: float) -> FrozenTrial | None:
        """Return an ended trial that is to go on instead of the best candidate, of that expected gain per step."""
        if self._paused is None or not (numbers := self._paused.offered()):
            return None
        trials = study.get_trials(deepcopy=False)
        promised = resuming.promises(self._history, scale, trials, numbers, self._steps)
        bar = resuming.MARGIN * max(best, forecast.pace(self._history, scale))
        number = resuming.choose(self._paused, promised, bar)
        if number is None:
            return None
        study._storage.set_trial_user_attr(trial._trial_id, Attr.RESUMES, number)
        study._storage.set_trial_user_attr(trial._trial_id, Attr.PROPOSED_BY, RESUMED)
        return trials[number]

    def _moves(self, study: Study, trial: FrozenTrial, seen: Stack, random: Generator) -> list[Draft]:
        """Return candidates near members of the front, each member in turn."""
        counted = seen.where(seen.feasible)
        front = counted.number[pareto.members(counted.points)]
        trials = study.get_trials(deepcopy=False)
        parents = [trials[number].params for number in random.permutation(front)] if self._near else []
        if not parents:
            return [Draft(self._random, study, trial) for _ in range(self._near)]
        return [Near(self._random, study, trial, parents[i % len(parents)], random) for i in range(self._near)]

    def _share_of_model(self, study: Study, seen: Stack) -> float:
        """Return the model's share of the trials: its part of the latest trials' gain per step, within limits."""
        trials = study.get_trials(deepcopy=False)
        order = np.argsort(seen.number)
        ordered = seen.where(order[seen.feasible[order]])
        scale = _scale(self._history, ordered, ordered.points, self._units) if len(ordered) else None
        if scale is None:
            return MODEL_SHARE
        points = scale.transform(ordered.points)
        start = max(0, len(points) - LATELY)
        gained, steps = {MODEL: 0.0, SAMPLER: 0.0}, {MODEL: 0.0, SAMPLER: 0.0}
        front: Floats = points[:start]
        for place in range(start, len(points)):
            by = trials[ordered.number[place]].user_attrs.get(Attr.PROPOSED_BY)
            if by in gained:
                members = front[pareto.members(front)] if len(front) else front
                gained[by] += float(pareto.gains(members, points[place : place + 1], scale.reference)[0])
                steps[by] += float(ordered.last[place])
            front = points[: place + 1]
        if not (steps[MODEL] and steps[SAMPLER]) or not (gained[MODEL] + gained[SAMPLER]):
            return MODEL_SHARE
        rates = {by: gained[by] / steps[by] for by in gained}
        share = rates[MODEL] / (rates[MODEL] + rates[SAMPLER])
        return min(max(share, LEAST_SHARE), 1 - LEAST_SHARE)

    def _expected_costs(self, study: Study, parameters: Sequence[Mapping[str, Any]]) -> Floats:
        """Return the expected cost of each candidate's step, (candidates,); all 1 if costs are unused or unknown."""
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)) if self._cost else []
        seen = [(trial.params, cost) for trial in ended if self._cost and (cost := self._cost(trial)) and cost > 0]
        if len(seen) < FEWEST:
            return np.ones(len(parameters))
        inputs = self._history.features([params for params, _ in seen])
        self._costs.fit(inputs, np.log([cost for _, cost in seen]))
        expected: Floats = np.exp(self._costs.predict(self._history.features(parameters))[0])
        return expected

    def _points(self, known: Floats) -> Floats:
        """Return the candidates' known objectives, more is better, with 0 for the observed one: (candidates, all)."""
        assert self._history.observed is not None
        found: Floats = np.insert(known, self._history.observed, 0.0, axis=1) * self._history.sign
        return found

    def _gains(
        self, scale: Scale, seen: Stack, params: Sequence[Mapping[str, Any]], points: Floats, steps: Sequence[int]
    ) -> Floats:
        """Return the expected gain of each candidate, (candidates,).

        The surrogate learns the log error of every trial's best checkpoint, at its last step, and those of a trial that
        was seen to its end also at parts of its steps: so what the end of a training adds is learnt from the same
        trials at both times, and not from comparing whole trials with those that were ended early.
        """
        history = self._history
        front = scale.transform(seen.points[seen.feasible])
        front = front[pareto.members(front)]
        row, column, used = learnt(history, seen)
        inputs = np.column_stack([seen.features[row], self._clock(history.grid[column])])
        self._model.fit(inputs, scale.errors(seen.best[row, column]), used)
        mean, deviation = self._model.predict(np.column_stack([history.features(params), self._clock(np.array(steps))]))
        values = scale.values(mean[:, None] + deviation[:, None] * QUANTILES)  # (candidates, quantiles)
        hoped = np.repeat(scale.transform(points), len(QUANTILES), axis=0)
        hoped[:, history.observed] = values.reshape(-1)
        gains = pareto.gains(front, hoped, scale.reference)
        expected: Floats = gains.reshape(len(points), -1).mean(axis=1)
        return expected

    def _clock(self, steps: NDArray[Any]) -> Floats:
        """Return steps on a logarithmic scale from 0 to 1."""
        grid = self._history.grid
        clock: Floats = log_steps(steps, grid) / (log_steps(grid, grid)[-1] or 1.0)
        return clock


def learnt(history: History, seen: Stack) -> tuple[NDArray[np.int64], NDArray[np.int64], Bools]:
    """Return the checkpoints that a surrogate may learn from, trial by trial, and which of them its regression uses.

    Returns:
        Their rows and columns of `seen.best`, and whether each is of the latest trials or of the front.
    """
    start = forecast.origin(history.grid)
    steps = (seen.last[:, None] - start) // np.array(SHARES) + start  # (trials, shares), ascending
    column = np.searchsorted(history.grid, steps, side="right") - 1
    kept = (column >= 0) & ~np.isnan(np.take_along_axis(seen.best, np.maximum(column, 0), axis=1))
    kept[:, :-1] &= seen.whole[:, None] & (column[:, :-1] < column[:, 1:])
    latest = np.cumsum(kept.sum(axis=1)[::-1])[::-1] <= MOST
    latest[pareto.members(seen.points)] = True
    row, share = np.nonzero(kept)
    return row, column[row, share], latest[row]


def _scale(history: History, seen: Stack, candidates: Floats, units: Mapping[str, Any]) -> Scale:
    assert history.observed is not None
    points = candidates.copy()
    points[:, history.observed] = seen.points[:, history.observed].max()
    return make_scale(
        np.vstack([seen.points, points]), history.sign, history.observed, lowest=float(np.nanmin(seen.best)), **units
    )
