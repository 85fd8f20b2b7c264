"""One replay: a search on a table by a real Optuna study, its epochs read instead of trained."""

from __future__ import annotations

import heapq
import math
import time
import warnings
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from kdsearch import pareto
from kdsearch.experiments.search_bench.rivals import MOASHA, HubJoint, Oracle, SameEpochDominance
from kdsearch.experiments.search_bench.table_rows import EPOCHS, Rows, TableSampler
from kdsearch.experiments.search_bench.tables import Table
from kdsearch.pruning import pruner
from kdsearch.records import Attr
from kdsearch.search.sampling import samplers
from kdsearch.search.sampling.proposals import ProposalSampler
from kdsearch.system import machine

METHODS = {
    "none": ("none", False),
    "dominance": ("dominance", False),
    "moasha": ("moasha", False),
    "hub": ("hub", False),
    "pruner": ("pareto", False),
    "proposals": ("none", True),
    "ours": ("pareto", True),
    "oracle": ("oracle", False),
}
"""From a method's name to its rule and whether trials are chosen among several candidates."""

ALL, SAMPLED = "all", "sampled"
Steps = list[tuple[int, float]]


@dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
        sampler: "random", "tpe", "nsga2" or "gp".
        epochs: "all": every trial may run all of the table's; "sampled": their number is a parameter of each trial.
        method: key of `METHODS`.
        workers: simulated; an epoch takes each the same time.
    """

    sampler: str
    epochs: str
    method: str
    workers: int = 1

    @property
    def key(self) -> str:
        """A name that no other arm has."""
        return f"{self.sampler}/{self.epochs}/{self.method}" + (f"/{self.workers}" if self.workers > 1 else "")


@dataclass
class Run:
    """What came of a replay.

    Attributes:
        arm, seed: as given.
        spent: epochs.
        trials: started; those that a rule refused before the first epoch too.
        trained: trials with at least one epoch.
        best_trials: (epochs spent, hypervolume) whenever that of `study.best_trials` grew.
        checkpoints: the same for all checkpoints of all trials, which count at once.
        seconds: of CPU time.
    """

    arm: Arm
    seed: int
    spent: int = 0
    trials: int = 0
    trained: int = 0
    best_trials: Steps = field(default_factory=list)
    checkpoints: Steps = field(default_factory=list)
    seconds: float = 0.0


class Archive:
    """The front of points as they come, and its hypervolume.

    Args:
        reference: (accuracy, log10 ratio).
    """

    def __init__(self, reference: tuple[float, float]) -> None:
        self._reference = reference
        self._front: list[tuple[float, float]] = []
        self.hypervolume = 0.0

    def add(self, accuracy: float, ratio: float) -> bool:
        """Whether the hypervolume grew."""
        point = (accuracy, math.log10(ratio))
        if any(x >= point[0] and y >= point[1] for x, y in self._front):
            return False
        self._front = [(x, y) for x, y in self._front if x > point[0] or y > point[1]] + [point]
        before, self.hypervolume = self.hypervolume, pareto.hypervolume(self._front, self._reference)
        return self.hypervolume > before


def make_pruner(rule: str, rows: Rows, *, sampled_epochs: bool) -> BasePruner:
    """The pruner that a rule's name stands for; each serves one study.

    Raises:
        KeyError: there is no such rule.
    """
    longest = rows.table.epochs
    return {
        "none": NopPruner,
        "dominance": SameEpochDominance,
        "moasha": lambda: MOASHA(longest),
        "hub": HubJoint,
        "oracle": lambda: Oracle(rows),
        "pareto": lambda: pruner.ParetoPruner(max_steps=EPOCHS if sampled_epochs else longest),
    }[rule]()


class Replay:
    """One replay.

    Args:
        table: to read epochs from.
        arm: what to run.
        seed: of all draws; replays of different arms with one seed are a pair in the tests.
        budget: epochs over all trials; a trial that crosses it is cut there and counts with its best checkpoint.
        trials: no more than so many are started.
    """

    def __init__(
        self, table: Table, arm: Arm, *, seed: int, budget: float = math.inf, trials: float = math.inf
    ) -> None:
        rule, proposals = METHODS[arm.method]
        sampled = arm.epochs == SAMPLED
        self._table, self._arm = table, arm
        self._budget, self._limit = budget, trials
        self._rows = Rows(table, sampled_epochs=sampled)
        inner = None if arm.sampler == "random" else samplers.make(arm.sampler, seed)
        sampler: BaseSampler = TableSampler(self._rows, inner, seed=seed)
        if proposals:
            sampler = _choosing(sampler, self._rows, seed)
        self.study = optuna.create_study(
            directions=["maximize"] * 2,
            sampler=sampler,
            pruner=make_pruner(rule, self._rows, sampled_epochs=sampled),
        )
        self._best, self._all = Archive(table.reference), Archive(table.reference)
        self._refused = 0  # trials in a row that ended before their first epoch
        self.run_ = Run(arm, seed)

    def run(self) -> Run:
        """Runs it, once."""
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._drive()
        self.run_.seconds = time.process_time() - began
        return self.run_

    def _drive(self) -> None:
        """Simulated workers: whose trial is least advanced in time does its next epoch."""
        workers: list[tuple[float, int, Generator[None, bool, None]]] = []
        for worker in range(self._arm.workers):
            self._next_trial(workers, worker / self._arm.workers, worker)
        while workers and self.run_.spent < self._budget:
            now, worker, trial = heapq.heappop(workers)
            self.run_.spent += 1
            try:
                trial.send(self.run_.spent >= self._budget)
                heapq.heappush(workers, (now + 1, worker, trial))
            except StopIteration:
                if self.run_.spent < self._budget:
                    self._next_trial(workers, now, worker)
        for _, _, trial in workers:  # cut amid an epoch, which does not count
            trial.close()

    def _next_trial(self, workers: list[Any], now: float, worker: int) -> None:
        """Starts the worker's next trial that has an epoch; none where a table's worth were refused in a row."""
        while self._refused <= len(self._rows) and self.run_.trials < self._limit:
            trial = self._trial()
            try:
                next(trial)
            except StopIteration:
                self._refused += 1
                continue
            self._refused = 0
            heapq.heappush(workers, (now + 1, worker, trial))
            return

    def _trial(self) -> Generator[None, bool, None]:
        """A trial; it stops before each epoch and is sent, when that is over, whether the budget is."""
        self.run_.trials += 1
        trial = self.study.ask()
        config = self._rows.draw(trial)
        row, last = self._rows.find(trial.params), self._rows.epochs(trial.params)
        self._rows.take(row)
        ratio = float(self._table.ratio[row])
        trial.set_user_attr(Attr.CONFIG, config)
        trial.set_user_attr(Attr.RATIO, ratio)
        pruner.report(trial, (None, ratio), 0, prefix="")
        if pruner.should_prune(trial, prefix=""):
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        best = -math.inf
        self.run_.trained += 1
        for epoch in range(1, last + 1):
            try:
                over = yield
            except GeneratorExit:
                self._end(trial, best, ratio)
                return
            accuracy = float(self._table.accuracy[row, epoch - 1])
            best = max(best, accuracy)
            self._note(self._all, self.run_.checkpoints, accuracy, ratio)
            pruner.report(trial, (accuracy, ratio), epoch, prefix="")
            if over or epoch == last:
                break
            if pruner.should_prune(trial, prefix=""):
                trial.set_user_attr(Attr.ACCURACY, best)
                self.study.tell(trial, state=TrialState.PRUNED)
                return
            if pruner.should_stop(trial, prefix=""):
                break
        self._end(trial, best, ratio)

    def _end(self, trial: optuna.Trial, best: float, ratio: float) -> None:
        if best == -math.inf:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr(Attr.ACCURACY, best)
        self.study.tell(trial, (best, ratio))
        self._note(self._best, self.run_.best_trials, best, ratio)

    def _note(self, archive: Archive, steps: Steps, accuracy: float, ratio: float) -> None:
        if archive.add(accuracy, ratio):
            steps.append((self.run_.spent, archive.hypervolume))


def _choosing(inner: BaseSampler, rows: Rows, seed: int) -> ProposalSampler:
    """Chooses among candidates of `inner` and random rows, each of whose ratio is known."""
    return ProposalSampler(
        inner,
        TableSampler(rows, None, seed=machine.derive_seed("candidates", seed)),
        rows.draw,
        lambda _, config: (rows.ratio(config),),
        steps=lambda config: int(config[EPOCHS]),
    )


def replay(table: Table, arm: Arm, *, seed: int, budget: float = math.inf, trials: float = math.inf) -> Run:
    """One replay, alike whenever it is run with the same arguments; see `Replay`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Replay(table, arm, seed=seed, budget=budget, trials=trials).run()
