"""Replay a search on a table with a real Optuna study, reading epochs instead of training them."""

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
from kdsearch.experiments.search_bench.problems import Problem
from kdsearch.experiments.search_bench.rivals import MOASHA, HubJoint, Oracle, SameEpochDominance
from kdsearch.experiments.search_bench.tables import EPOCHS, Rows, Table, TableSampler
from kdsearch.pruning import pruner
from kdsearch.records import Attr
from kdsearch.search import resuming
from kdsearch.search.budget import epochs_run
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
    "resume": ("pareto", True),
    "oracle": ("oracle", False),
}
"""Methods mapped to their pruning rule and whether trials are chosen among several candidates; "resume" is "ours" with
trials that go on after they were ended."""

ALL, SAMPLED = "all", "sampled"
REFUSED_IN_A_ROW = 1000  # trials refused before their first epoch that end a replay of a problem without rows
Steps = list[tuple[int, float]]


@dataclass(frozen=True)
class Arm:
    """A combination of sampler, epochs, method and workers to compare.

    Attributes:
        sampler: "random", "tpe", "nsga2" or "gp".
        epochs: "all": every trial may run all of the table's; "sampled": their number is a parameter of each trial.
        method: key of `METHODS`.
        workers: number of simulated workers, all of the same speed.
    """

    sampler: str
    epochs: str
    method: str
    workers: int = 1

    @property
    def key(self) -> str:
        """Return the arm's unique name."""
        return f"{self.sampler}/{self.epochs}/{self.method}" + (f"/{self.workers}" if self.workers > 1 else "")


@dataclass
class Run:
    """The result of a replay.

    Attributes:
        arm, seed: as given.
        spent: epochs.
        trials: number started, including those that a rule refused before the first epoch.
        resumed: trials that went on from one that was ended.
        trained: trials with at least one epoch.
        best_trials: (epochs spent, hypervolume) whenever the hypervolume of `study.best_trials` changed.
        checkpoints: the same for all checkpoints of all trials, each counted as soon as it exists.
        by_truth: the same as `checkpoints`, with the front chosen by true values.
        seconds: of CPU time.
    """

    arm: Arm
    seed: int
    spent: int = 0
    trials: int = 0
    trained: int = 0
    resumed: int = 0
    best_trials: Steps = field(default_factory=list)
    checkpoints: Steps = field(default_factory=list)
    by_truth: Steps = field(default_factory=list)
    seconds: float = 0.0


class Archive:
    """An incremental front: members are chosen by observed accuracy, and hypervolume uses the true one.

    Args:
        reference: (accuracy, log10 ratio).

    Attributes:
        hypervolume: of the front's true values; it may fall where a lucky observation displaces a better student.
    """

    def __init__(self, reference: tuple[float, float]) -> None:
        self._reference = reference
        self._front: list[tuple[float, float, float]] = []  # observed accuracy, log ratio, true accuracy
        self.hypervolume = 0.0

    def add(self, observed: float, ratio: float, true: float) -> bool:
        """Add a point; return whether the hypervolume changed."""
        x, y = observed, math.log10(ratio)
        if any(a >= x and b >= y for a, b, _ in self._front):
            return False
        self._front = [point for point in self._front if point[0] > x or point[1] > y] + [(x, y, true)]
        before = self.hypervolume
        self.hypervolume = pareto.hypervolume([(value, b) for _, b, value in self._front], self._reference)
        return self.hypervolume != before


def make_pruner(rule: str, problem: Problem, longest: int | str) -> BasePruner:
    """Return a new pruner for a rule; each serves one study.

    Args:
        rule: "none", "dominance", "moasha", "hub", "oracle" or "pareto".
        problem: replayed.
        longest: steps of a trial, or the parameter that holds them.

    Raises:
        KeyError: the rule is unknown.
    """
    known: dict[str, Any] = {"log": [1], "ideal": 1.0} if problem.own else {}  # the settings of `kdsearch optimize`
    return {
        "none": NopPruner,
        "dominance": SameEpochDominance,
        "moasha": lambda: MOASHA(problem.epochs),
        "hub": HubJoint,
        "oracle": lambda: Oracle(problem, longest),
        "pareto": lambda: pruner.ParetoPruner(max_steps=longest, exempt=Attr.ANCHOR, prefix="", **known),
    }[rule]()


class Replay:
    """One replay.

    Args:
        problem: a table, or a problem whose curves are computed.
        arm: the arm to run.
        seed: of all draws; replays of different arms with the same seed are paired in the tests.
        budget: epochs over all trials; the trial that reaches it is cut there and counts with its best checkpoint.
        trials: most trials to start.
    """

    def __init__(
        self, problem: Table | Problem, arm: Arm, *, seed: int, budget: float = math.inf, trials: float = math.inf
    ) -> None:
        rule, proposals = METHODS[arm.method]
        sampled = arm.epochs == SAMPLED
        self._problem: Problem = Rows(problem, sampled_epochs=sampled) if isinstance(problem, Table) else problem
        self._arm = arm
        self._budget, self._limit = budget, trials
        self._paused = PausedHere()
        sampler, random = self._samplers(seed)
        if proposals:
            paused = self._paused if arm.method == "resume" else None
            sampler = _choosing(sampler, random, self._problem, seed, paused)
        errors = self._problem.observed_in == "errors"
        self.study = optuna.create_study(
            directions=["minimize" if errors else "maximize", "maximize"],
            sampler=sampler,
            pruner=make_pruner(rule, self._problem, EPOCHS if sampled else self._problem.epochs),
        )
        self._best, self._all, self._true = (Archive(self._problem.reference) for _ in range(3))
        self._refused = 0  # trials in a row that ended before their first epoch
        self.run_ = Run(arm, seed)

    def _samplers(self, seed: int) -> tuple[BaseSampler, BaseSampler]:
        """Return the arm's sampler, and a random one for other candidates."""
        name, other = self._arm.sampler, machine.derive_seed("candidates", seed)
        if isinstance(self._problem, Rows):
            inner = None if name == "random" else samplers.make(name, seed)
            return TableSampler(self._problem, inner, seed=seed), TableSampler(self._problem, None, seed=other)
        return samplers.make(name, seed), samplers.make("random", other)

    def run(self) -> Run:
        """Run the replay, once."""
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._drive()
        self.run_.seconds = time.process_time() - began
        return self.run_

    def _drive(self) -> None:
        """Simulate the workers: the one whose trial is least advanced in time runs its next epoch."""
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
        for _, _, trial in workers:  # cut within an epoch, which does not count
            trial.close()

    def _next_trial(self, workers: list[Any], now: float, worker: int) -> None:
        """Start the worker's next trial that has an epoch; none after many refusals in a row."""
        most = len(self._problem) if isinstance(self._problem, Rows) else REFUSED_IN_A_ROW
        while self._refused <= most and self.run_.trials < self._limit:
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
        """Run a trial; yield before each epoch, and receive after it whether the budget is spent."""
        self.run_.trials += 1
        trial = self.study.ask()
        config = self._problem.draw(trial)
        before = resuming.resumed(trial)
        if isinstance(self._problem, Rows) and before is None:
            self._problem.take(self._problem.find(trial.params))
        last = int(trial.params.get(EPOCHS, self._problem.epochs))
        ratio = self._problem.ratio(config)
        observed, true = self._problem.curves(config)
        trial.set_user_attr(Attr.CONFIG, config)
        trial.set_user_attr(Attr.RATIO, ratio)
        pruner.report(trial, (None, ratio), 0, prefix="")
        best = (-math.inf, math.nan)  # observed, and the true accuracy of that epoch
        done = 0 if before is None else epochs_run(self.study.get_trials(deepcopy=False)[before])
        if done:
            trial.set_user_attr(Attr.RESUMED, done)
        for epoch, accuracy in enumerate(observed[:done].tolist(), 1):
            best = max(best, (accuracy, float(true[epoch - 1])))
            pruner.report(trial, (self._reported(accuracy), ratio), epoch, prefix="")
        if before is None and pruner.should_prune(trial, prefix=""):
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        self.run_.trained += before is None
        self.run_.resumed += before is not None
        for epoch in range(done + 1, last + 1):
            try:
                over = yield
            except GeneratorExit:
                self._end(trial, best, ratio)
                return
            accuracy = float(observed[epoch - 1])
            best = max(best, (accuracy, float(true[epoch - 1])))
            self._note(self._all, self.run_.checkpoints, accuracy, ratio, float(true[epoch - 1]))
            self._note(self._true, self.run_.by_truth, float(true[epoch - 1]), ratio, float(true[epoch - 1]))
            pruner.report(trial, (self._reported(accuracy), ratio), epoch, prefix="")
            if over or epoch == last:
                break
            if pruner.should_prune(trial, prefix=""):
                self._pause(trial)
                trial.set_user_attr(Attr.ACCURACY, best[0])
                self.study.tell(trial, state=TrialState.PRUNED)
                return
            if pruner.should_stop(trial, prefix=""):
                self._pause(trial)
                break
        self._end(trial, best, ratio)

    def _pause(self, trial: optuna.Trial) -> None:
        if Attr.RESUMES not in trial.user_attrs:  # once is enough
            self._paused.numbers.append(trial.number)

    def _reported(self, accuracy: float) -> float:
        kind = self._problem.observed_in
        return 1 - accuracy if kind == "errors" else 100 * accuracy if kind == "percent" else accuracy

    def _end(self, trial: optuna.Trial, best: tuple[float, float], ratio: float) -> None:
        if best[0] == -math.inf:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr(Attr.ACCURACY, best[0])
        self.study.tell(trial, (self._reported(best[0]), ratio))
        self._note(self._best, self.run_.best_trials, best[0], ratio, best[1])

    def _note(self, archive: Archive, steps: Steps, accuracy: float, ratio: float, true: float) -> None:
        if archive.add(accuracy, ratio, true):
            steps.append((self.run_.spent, archive.hypervolume))


class PausedHere:
    """The ended trials of a replay, all of which can go on.

    Attributes:
        numbers: of these trials.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def offered(self) -> list[int]:
        return list(self.numbers)

    def take(self, number: int) -> bool:
        self.numbers.remove(number)
        return True

    def drop(self, number: int) -> None:
        self.numbers.remove(number)


def _choosing(
    inner: BaseSampler, random: BaseSampler, problem: Problem, seed: int, paused: PausedHere | None
) -> ProposalSampler:
    """Return a sampler that chooses among candidates of two samplers by their ratios, as `kdsearch optimize` does."""
    known: dict[str, Any] = {"log": [1], "ideal": 1.0} if problem.own else {}
    return ProposalSampler(
        inner,
        random,
        problem.draw,
        lambda _, configs: [(problem.ratio(config),) for config in configs],
        steps=lambda config: int(config.get(EPOCHS, problem.epochs)),
        paused=paused,
        seed=seed,
        **known,
    )


def replay(problem: Table | Problem, arm: Arm, *, seed: int, budget: float = math.inf, trials: float = math.inf) -> Run:
    """Run one replay, deterministic in its arguments; see `Replay`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Replay(problem, arm, seed=seed, budget=budget, trials=trials).run()
