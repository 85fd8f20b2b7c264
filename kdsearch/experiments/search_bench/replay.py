"""Replay a search on a table with a real Optuna study, reading epochs instead of training them."""

from __future__ import annotations

import heapq
import math
import time
import warnings
from collections.abc import Callable, Generator
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

ALL, SAMPLED = "all", "sampled"
REFUSED_IN_A_ROW = 1000  # trials refused before their first epoch that end a replay of a problem without rows
REPORTED: dict[str, Callable[[float], float]] = {
    "fractions": lambda accuracy: accuracy,
    "percent": lambda accuracy: 100 * accuracy,
    "errors": lambda accuracy: 1 - accuracy,
}
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
        return f"{self.sampler}/{self.epochs}/{self.method}" + (f"/{self.workers}" if self.workers > 1 else "")


@dataclass
class Run:
    """The result of a replay.

    Attributes:
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
        steps: receives (epochs spent, hypervolume) whenever the hypervolume changes.

    Attributes:
        hypervolume: of the front's true values; it may fall where a lucky observation displaces a better student.
    """

    def __init__(self, reference: tuple[float, float], steps: Steps) -> None:
        self._reference, self._steps = reference, steps
        self._front: list[tuple[float, float, float]] = []  # observed accuracy, log ratio, true accuracy
        self.hypervolume = 0.0

    def add(self, spent: int, observed: float, ratio: float, true: float) -> None:
        """Add a point that exists once so many epochs are spent."""
        x, y = observed, math.log10(ratio)
        if any(a >= x and b >= y for a, b, _ in self._front):
            return
        self._front = [point for point in self._front if point[0] > x or point[1] > y] + [(x, y, true)]
        before = self.hypervolume
        self.hypervolume = pareto.hypervolume([(value, b) for _, b, value in self._front], self._reference)
        if self.hypervolume != before:
            self._steps.append((spent, self.hypervolume))


def archives(run: Run, problem: Problem) -> list[Archive]:
    """Return the archives of a run: of its best trials, of all its checkpoints, and of these by their true values."""
    return [Archive(problem.reference, steps) for steps in (run.best_trials, run.checkpoints, run.by_truth)]


def _pareto(problem: Problem, longest: int | str, **settings: Any) -> BasePruner:
    return pruner.ParetoPruner(max_steps=longest, exempt=Attr.ANCHOR, prefix="", **problem.settings, **settings)


METHODS: dict[str, tuple[Callable[[Problem, int | str], BasePruner], bool]] = {
    "none": (lambda *_: NopPruner(), False),
    "dominance": (lambda *_: SameEpochDominance(), False),
    "moasha": (lambda problem, _: MOASHA(problem.epochs), False),
    "hub": (lambda *_: HubJoint(), False),
    "pruner": (_pareto, False),
    "pruner-pace-1": (lambda problem, longest: _pareto(problem, longest, pace=1.0), False),
    "proposals": (lambda *_: NopPruner(), True),
    "ours": (_pareto, True),
    "resume": (_pareto, True),
    "moasha+proposals": (lambda problem, _: MOASHA(problem.epochs), True),
    "dominance+proposals": (lambda *_: SameEpochDominance(), True),
    "oracle": (Oracle, False),
}
"""Methods mapped to their pruner, of a problem and the steps of a trial or the parameter that holds them, and whether
trials are chosen among several candidates; "resume" is "ours" with trials that go on after they were ended."""


class Replay:
    """One replay.

    Args:
        problem: a table, or a problem whose curves are computed.
        arm: what is replayed.
        seed: of all draws; replays of different arms with the same seed are paired in the tests.
        budget: epochs over all trials; the trial that reaches it is cut there and counts with its best checkpoint.
        trials: most trials to start.
    """

    def __init__(
        self, problem: Table | Problem, arm: Arm, *, seed: int, budget: float = math.inf, trials: float = math.inf
    ) -> None:
        sampled = arm.epochs == SAMPLED
        self._problem: Problem = Rows(problem, sampled_epochs=sampled) if isinstance(problem, Table) else problem
        self._arm = arm
        self._budget, self._limit = budget, trials
        self._paused = PausedHere()
        self._reported = REPORTED[self._problem.observed_in]
        make_pruner, _ = METHODS[arm.method]
        self.study = optuna.create_study(
            directions=["minimize" if self._problem.observed_in == "errors" else "maximize", "maximize"],
            sampler=self._sampler(seed),
            pruner=make_pruner(self._problem, EPOCHS if sampled else self._problem.epochs),
        )
        self._run = Run(arm, seed)
        self._best, self._all, self._true = archives(self._run, self._problem)
        self._refused = 0  # trials in a row that ended before their first epoch

    def _sampler(self, seed: int) -> BaseSampler:
        """Return the arm's sampler; with proposals one that chooses by the ratios, as `kdsearch optimize` does."""
        problem, name, other = self._problem, self._arm.sampler, machine.derive_seed("candidates", seed)
        if not isinstance(problem, Rows):
            own, random = samplers.make(name, seed), samplers.make("random", other)
        else:
            inner = None if name == "random" else samplers.make(name, seed)
            own, random = TableSampler(problem, inner, seed=seed), TableSampler(problem, None, seed=other)
        if not METHODS[self._arm.method][1]:
            return own
        return ProposalSampler(
            own,
            random,
            problem.draw,
            lambda _, configs: [(problem.ratio(config),) for config in configs],
            steps=lambda config: int(config.get(EPOCHS, problem.epochs)),
            paused=self._paused if self._arm.method == "resume" else None,
            seed=seed,
            **problem.settings,
        )

    def run(self) -> Run:
        """Run the replay, once."""
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._drive()
        self._run.seconds = time.process_time() - began
        return self._run

    def _drive(self) -> None:
        """Simulate the workers: the one whose trial is least advanced in time runs its next epoch."""
        workers: list[tuple[float, int, Generator[None, bool, None]]] = []
        for worker in range(self._arm.workers):
            self._next_trial(workers, worker / self._arm.workers, worker)
        while workers and self._run.spent < self._budget:
            now, worker, trial = heapq.heappop(workers)
            self._run.spent += 1
            try:
                trial.send(self._run.spent >= self._budget)
                heapq.heappush(workers, (now + 1, worker, trial))
            except StopIteration:
                if self._run.spent < self._budget:
                    self._next_trial(workers, now, worker)
        for _, _, trial in workers:  # cut within an epoch, which does not count
            trial.close()

    def _next_trial(self, workers: list[Any], now: float, worker: int) -> None:
        """Start the worker's next trial that has an epoch; none after many refusals in a row."""
        most = len(self._problem) if isinstance(self._problem, Rows) else REFUSED_IN_A_ROW
        while self._refused <= most and self._run.trials < self._limit:
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
        self._run.trials += 1
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
        if before is None and pruner.should_prune(trial, prefix=""):
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        self._run.trained += before is None
        self._run.resumed += before is not None
        for epoch, point in enumerate(zip(observed[:last].tolist(), true[:last].tolist(), strict=True), 1):
            if epoch > done:  # the epochs before were those of the trial that it goes on with
                try:
                    over = yield
                except GeneratorExit:
                    break
                self._all.add(self._run.spent, point[0], ratio, point[1])
                self._true.add(self._run.spent, point[1], ratio, point[1])
            best = max(best, point)
            pruner.report(trial, (self._reported(point[0]), ratio), epoch, prefix="")
            if epoch <= done:
                continue
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

    def _end(self, trial: optuna.Trial, best: tuple[float, float], ratio: float) -> None:
        if best[0] == -math.inf:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr(Attr.ACCURACY, best[0])
        self.study.tell(trial, (self._reported(best[0]), ratio))
        self._best.add(self._run.spent, best[0], ratio, best[1])


class PausedHere:
    """The numbers of the ended trials of a replay, all of which can go on."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def offered(self) -> list[int]:
        return list(self.numbers)

    def take(self, number: int) -> bool:
        self.numbers.remove(number)
        return True

    def drop(self, number: int) -> None:
        self.numbers.remove(number)


def replay(problem: Table | Problem, arm: Arm, *, seed: int, budget: float = math.inf, trials: float = math.inf) -> Run:
    """Run one replay, deterministic in its arguments; see `Replay`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Replay(problem, arm, seed=seed, budget=budget, trials=trials).run()
