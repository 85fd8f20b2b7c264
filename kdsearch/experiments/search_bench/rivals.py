"""The pruning rules that ParetoPruner is compared with, and the oracle, which bounds all rules.

All read the curves that `kdsearch.report` stores, of (accuracy, ratio), both maximised. For every rule, a trial's
result at a step is its best checkpoint so far. An instance serves one study.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from kdsearch.experiments.search_bench.problems import Problem
from kdsearch.pruning.pruner import Verdict
from kdsearch.records import Attr

Floats = NDArray[np.float64]
GO, STOP, PRUNE = Verdict("go", None), Verdict("stop", None), Verdict("prune", None)


class Curves:
    """The curves of a study as arrays; curves of finished trials are read once.

    Attributes:
        best: (trials, steps), the best accuracy up to step 1, 2, ...; NaN beyond a trial's last step.
        ratio: (trials,), NaN where a trial has none.
        steps: (trials,), the last step.
        over: (trials,), whether the trial has ended.
    """

    def __init__(self) -> None:
        self.best: Floats = np.full((64, 32), np.nan)
        self.ratio: Floats = np.full(64, np.nan)
        self.steps = np.zeros(64, dtype=np.int64)
        self.over = np.zeros(64, dtype=np.bool_)
        self._open: list[int] = []
        self._seen = 0

    def update(self, study: Study) -> None:
        trials = study.get_trials(deepcopy=False)
        self._sign = 1.0 if study.directions[0] == StudyDirection.MAXIMIZE else -1.0
        while len(trials) > len(self.ratio):
            self._grow(rows=len(self.ratio))
        waiting = [*self._open, *range(self._seen, len(trials))]
        self._seen = len(trials)
        self._open = [number for number in waiting if not self._read(trials[number])]

    def at(self, step: int) -> NDArray[np.int64]:
        """Return the numbers of the trials that reached a step and did not fail."""
        return np.flatnonzero(self.steps >= step)

    def points(self, numbers: NDArray[np.int64], step: int) -> Floats:
        """Return (trials, 2): best accuracy up to a step, and ratio."""
        return np.stack([self.best[numbers, step - 1], self.ratio[numbers]], axis=1)

    def _grow(self, rows: int = 0, columns: int = 0) -> None:
        self.best = np.pad(self.best, ((0, rows), (0, columns)), constant_values=np.nan)
        self.ratio = np.pad(self.ratio, (0, rows), constant_values=np.nan)
        self.steps, self.over = np.pad(self.steps, (0, rows)), np.pad(self.over, (0, rows))

    def _read(self, trial: FrozenTrial) -> bool:
        """Read a trial; return whether it is over, so that it need not be read again."""
        curve, number = trial.user_attrs.get(Attr.CURVE, {}), trial.number
        if trial.state == TrialState.FAIL:
            self.steps[number] = 0
            return True
        for step in range(int(self.steps[number]) + 1, len(curve)):
            if step > self.best.shape[1]:
                self._grow(columns=self.best.shape[1])
            accuracy, self.ratio[number] = curve[str(step)]
            before = self.best[number, step - 2] if step > 1 else -np.inf
            self.best[number, step - 1] = max(self._sign * accuracy, before)
            self.steps[number] = step
        self.over[number] = trial.state.is_finished()
        return bool(self.over[number])


class CurveRule(BasePruner, ABC):
    """Base of the rules: each decides once a step, from step 1 on, with all curves."""

    def __init__(self) -> None:
        self.curves = Curves()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        self.curves.update(study)
        step = int(self.curves.steps[trial.number])
        return step > 0 and self.hopeless(trial.number, step)

    @abstractmethod
    def hopeless(self, number: int, step: int) -> bool:
        """Whether trial `number` should end after `step`; `curves` is up to date."""


class SameEpochDominance(CurveRule):
    """Prunes when a trial at least as fast had a better result at the same epoch, or an equal one and is faster.

    RUNNING trials count.
    """

    def hopeless(self, number: int, step: int) -> bool:
        own = self.curves.points(np.array([number]), step)
        return _dominated(self.curves.points(self.curves.at(step), step), own)


def _dominated(points: Floats, own: Floats) -> bool:
    """Whether a point is dominated by one of (points, 2), both maximised."""
    return bool(np.any((points >= own).all(axis=1) & (points > own).any(axis=1)))


def domination_ranks(points: Floats) -> NDArray[np.int64]:
    """Return the index from 0 of each point's front; equal points share one. (points, 2), both maximised.

    A point's rank is the length of the longest chain of points, each dominating the next, that ends above it: sorted
    by the first coordinate, the fronts' best second coordinates form a descending list, which is bisected. O(n log n).
    """
    order = np.lexsort((-points[:, 1], -points[:, 0]))
    ranks = np.zeros(len(points), dtype=np.int64)
    tops: list[float] = []  # minus the best second coordinate of each front so far, ascending
    last: tuple[float, float] | None = None
    for index in order.tolist():
        first, second = points[index].tolist()
        if (first, second) != last:
            rank = bisect.bisect_right(tops, -second)
            tops[rank : rank + 1] = [-second]
            last = (first, second)
        ranks[index] = rank
    return ranks


def farthest_first(points: Floats) -> list[int]:
    """Return the order of an epsilon-net: the point best in the first coordinate, then the farthest from all before.

    (points, coordinates), on one scale.
    """
    order = [int(np.argmax(points[:, 0]))]
    gap = np.linalg.norm(points - points[order[0]], axis=1)
    while len(order) < len(points):
        gap[order[-1]] = -1.0
        order.append(int(np.argmax(gap)))
        gap = np.minimum(gap, np.linalg.norm(points - points[order[-1]], axis=1))
    return order


class MOASHA(CurveRule):
    """Multi-objective asynchronous successive halving (Schmucker et al. 2021, arXiv 2106.12639), stopping variant.

    Rungs are at 1, eta, eta^2, ... epochs below the longest. A trial that reaches a rung continues if it is among the
    best 1/eta (rounded down) of all that reached it before and itself, ranked by non-dominated sorting and within a
    front by the epsilon-net: farthest first. Chosen here, because the paper leaves it open: coordinates are accuracy
    and log10 ratio, each scaled to 0 to 1 over the rung; the net begins with the most accurate; with fewer than eta
    trials at the rung, a trial continues.
    """

    ETA = 3

    def __init__(self, longest: int) -> None:
        super().__init__()
        self._rungs = {self.ETA**power for power in range(32) if self.ETA**power < longest}

    def hopeless(self, number: int, step: int) -> bool:
        there = self.curves.at(step)
        if step not in self._rungs or len(there) < self.ETA:
            return False
        points = self.curves.points(there, step)
        points[:, 1] = np.log10(points[:, 1])
        ranks = domination_ranks(points)
        own = int(np.flatnonzero(there == number)[0])
        ahead = int((ranks < ranks[own]).sum())
        places = len(there) // self.ETA
        if ahead >= places:
            return True
        spread = np.ptp(points, axis=0)
        scaled = (points - points.min(axis=0)) / np.where(spread > 0, spread, 1.0)
        level = np.flatnonzero(ranks == ranks[own])
        return ahead + farthest_first(scaled[level]).index(int(np.flatnonzero(level == own)[0])) >= places


def contribution_order(points: Floats, reference: Floats) -> list[int]:
    """Return the indices of a front's points by greedy hypervolume contribution, largest first, equal ones together.

    Args:
        points: (points, 2), both maximised, none dominating another.
        reference: (2,), below all of them.
    """
    unique, inverse = np.unique(points, axis=0, return_inverse=True)  # ascending in x, so descending in y
    left, below = np.full(len(unique), reference[0]), np.full(len(unique), reference[1])
    order: list[int] = []
    chosen = np.zeros(len(unique), dtype=np.bool_)
    for _ in range(len(unique)):
        gains = (unique[:, 0] - left) * (unique[:, 1] - below)
        best = int(np.argmax(np.where(chosen, -np.inf, gains)))
        chosen[best] = True
        order.append(best)
        left[best + 1 :] = np.maximum(left[best + 1 :], unique[best, 0])
        below[:best] = np.maximum(below[:best], unique[best, 1])
    flat = inverse.reshape(-1)
    return [int(index) for group in order for index in np.flatnonzero(flat == group)]


class HubJoint(CurveRule):
    """The joint rule of OptunaHub's `pruners/multi_metric_pruner`, as of November 2026, around a MedianPruner.

    At each step all trials that reached it are ranked by non-dominated sorting. A trial on the first front at any step
    so far continues; otherwise those on its front are moved ahead by 0.5 to 0.1 in the order of their hypervolume
    contribution, and it is pruned when its best rank over all steps so far is behind the median, at this step, of
    the finished trials. No trial is pruned before 5 have finished. (RUNNING trials are ranked but not in the median.)
    """

    START_UP = 5

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[tuple[int, int], tuple[int, float]] = {}

    def hopeless(self, number: int, step: int) -> bool:
        over = self.curves.over
        if int((over & (self.curves.steps > 0)).sum()) < self.START_UP:
            return False
        there, ranks = self._ranks(number, step)
        others = ranks[over[there]]
        best = min(self._rank(number, at) for at in range(1, step + 1))
        return len(others) > 0 and best > float(np.median(others))

    def _rank(self, number: int, step: int) -> float:
        """Return the trial's rank at a step, recomputed only when another trial has reached the step since."""
        count = len(self.curves.at(step))
        before, rank = self._known.get((number, step), (0, 0.0))
        if before != count:
            there, ranks = self._ranks(number, step)
            rank = float(ranks[there == number][0])
            self._known[number, step] = count, rank
        return rank

    def _ranks(self, number: int, step: int) -> tuple[NDArray[np.int64], Floats]:
        there = self.curves.at(step)
        points = self.curves.points(there, step)
        ranks = domination_ranks(points).astype(np.float64)
        own = there == number
        if ranks[own][0] == 0:
            ranks[own] = -1.0
            return there, ranks
        level = np.flatnonzero(ranks == ranks[own][0])
        if len(level) > 1:
            worst = points[level].min(axis=0)
            order = contribution_order(points[level], np.minimum(0.9 * worst, 1.1 * worst))
            ranks[level[order]] -= np.linspace(0.5, 0.1, len(order))
        return there, ranks


class Oracle(BasePruner):
    """Continues a trial only while one of its future checkpoints, which it knows, would increase the hypervolume.

    The hypervolume is that of all checkpoints so far. A trial is pruned (also before the first epoch), or stopped where
    its best checkpoint is on the front. Other trials' futures are unknown, so it bounds rules that end trials, not
    rules that choose them.

    Args:
        problem: the replayed problem, with accuracies reported as fractions.
        longest: epochs of a trial, or the parameter that holds them.
    """

    def __init__(self, problem: Problem, longest: int | str) -> None:
        self.curves = Curves()
        self._problem, self._longest = problem, longest

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return self.verdict(study, trial).action == "prune"

    def verdict(self, study: Study, trial: BaseTrial) -> Verdict:
        self.curves.update(study)
        number = trial.number
        step, config = int(self.curves.steps[number]), trial.user_attrs[Attr.CONFIG]
        log_ratio = np.log10(self._problem.ratio(config))
        seen = self.curves.at(1)
        points = np.stack([self._last(seen), np.log10(self.curves.ratio[seen])], axis=1)
        last = trial.params[self._longest] if isinstance(self._longest, str) else self._longest
        rest = self._problem.curves(config)[0][step:last]
        if len(rest) and self._grows(points, np.array([rest.max(), log_ratio])):
            return GO
        own = np.append(self._last(np.array([number])), log_ratio)
        return STOP if step > 0 and not _dominated(points, own) else PRUNE

    def _last(self, numbers: NDArray[np.int64]) -> Floats:
        return self.curves.best[numbers, self.curves.steps[numbers] - 1]

    def _grows(self, points: Floats, point: Floats) -> bool:
        return bool((point > self._problem.reference).all() and not (points >= point).all(axis=1).any())
