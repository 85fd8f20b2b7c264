"""Other people's searches on problems with computed curves, as they ship (`pip install 'kdsearch[peers]'`).

- `primo`: PriMO of NePS (`neural-pipeline-search`) without priors: MO-ASHA first, then Bayesian optimisation at full
  length. A promoted configuration goes on from its checkpoint and costs its new epochs.
- `syne-moasha`: MOASHA of Syne Tune (`syne-tune`; Schmucker et al., arXiv 2106.12639) with random configurations. As of
  0.16 it reads an ordered list of indices as priorities, so that it may stop one that dominates all others.

Both minimise the error of the best checkpoint so far and -log10 of the ratio. They search real and whole numbers only,
so tables with conditional dimensions are left out.
"""

from __future__ import annotations

import importlib.metadata
import math
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from kdsearch.experiments.search_bench.problems import Problem
from kdsearch.experiments.search_bench.replay import Run, archives
from kdsearch.experiments.search_bench.tables import EPOCHS, Params
from kdsearch.system import machine

PACKAGES = {"primo": "neural-pipeline-search", "syne-moasha": "syne-tune"}
"""Peers mapped to the packages that hold them."""


def version(method: str) -> str | None:
    """Return the version of a peer's package; None if it is not installed, or if the method is no peer."""
    try:
        return importlib.metadata.version(PACKAGES[method]) if method in PACKAGES else None
    except importlib.metadata.PackageNotFoundError:
        return None


def installed() -> list[str]:
    """Return the peers whose packages are installed."""
    return [method for method in PACKAGES if version(method) is not None]


class Bench:
    """Trains configurations of a problem epoch by epoch until a budget of epochs is spent; a run gets the figures."""

    def __init__(self, problem: Problem, run: Run, budget: float) -> None:
        self._problem, self._run, self._budget = problem, run, budget
        self._best, self._all, self._true = archives(run, problem)
        self._done: dict[str, int] = {}  # epochs by parameters
        self._known: dict[str, tuple[float, list[float], list[float]]] = {}  # ratio, observed and true accuracies
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        trial = optuna.create_study().ask()
        problem.draw(trial)
        self.space: dict[str, BaseDistribution] = trial.distributions

    @property
    def over(self) -> bool:
        return self._run.spent >= self._budget

    def epochs(self, params: Params, last: int) -> Iterator[tuple[int, list[float]]]:
        """Train parameters up to an epoch, from where they were left; yield each epoch and `values` after it.

        Parameters that are there already are trained anew, as their search would: PriMO asks for the same corner of the
        space again and again.
        """
        key = repr(sorted(params.items()))
        ratio, observed, true = self._curves(key, params)
        done = self._done.get(key, 0)
        if done >= last:
            done = 0
        self._run.trials += done == 0
        self._run.trained += done == 0
        try:
            while done < last and not self.over:
                done += 1
                self._done[key] = done
                self._run.spent += 1
                self._all.add(self._run.spent, observed[done - 1], ratio, true[done - 1])
                self._true.add(self._run.spent, true[done - 1], ratio, true[done - 1])
                yield done, self.values(params, done)
        finally:
            if done:
                best = int(np.argmax(observed[:done]))
                self._best.add(self._run.spent, observed[best], ratio, true[best])

    def values(self, params: Params, last: int) -> list[float]:
        """Return what is minimised: [error of the best of the first epochs, -log10 ratio]."""
        ratio, observed, _ = self._curves(repr(sorted(params.items())), params)
        return [1 - max(observed[:last]), -math.log10(ratio)]

    def _curves(self, key: str, params: Params) -> tuple[float, list[float], list[float]]:
        if key not in self._known:
            config = self._problem.draw(FixedTrial(params))
            observed, true = self._problem.curves(config)
            self._known[key] = self._problem.ratio(config), observed.tolist(), true.tolist()
        return self._known[key]


def _primo(bench: Bench, epochs: int) -> None:
    import neps

    space: dict[str, Any] = {EPOCHS: neps.HPOInteger(1, epochs, is_fidelity=True)}
    for name, dimension in bench.space.items():
        assert isinstance(dimension, FloatDistribution | IntDistribution)
        kind = neps.HPOFloat if isinstance(dimension, FloatDistribution) else neps.HPOInteger
        space[name] = kind(dimension.low, dimension.high, log=dimension.log)
    search = neps.AskAndTell(neps.algorithms.primo(neps.SearchSpace(space), prior_centers={}))
    while not bench.over:
        trial = search.ask()
        params = {name: value for name, value in trial.config.items() if name in bench.space}
        last = int(trial.config[EPOCHS])
        for _ in bench.epochs(params, last):
            pass
        search.tell(trial, bench.values(params, last))


def _syne_moasha(bench: Bench, epochs: int) -> None:
    from datetime import datetime

    from syne_tune import config_space
    from syne_tune.backend.trial_status import Trial
    from syne_tune.optimizer.scheduler import SchedulerDecision
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

    space: dict[str, Any] = {}
    for name, dimension in bench.space.items():
        assert isinstance(dimension, FloatDistribution | IntDistribution)
        kinds = ("uniform", "loguniform") if isinstance(dimension, FloatDistribution) else ("randint", "lograndint")
        space[name] = getattr(config_space, kinds[dimension.log])(dimension.low, dimension.high)
    search = MOASHA(space, metrics=["error", "cost"], time_attr="epoch", max_t=epochs)
    number = 0
    while not bench.over:
        trial = Trial(number, search.suggest().config, datetime.fromtimestamp(0))
        search.on_trial_add(trial)
        number += 1
        for epoch, (error, cost) in bench.epochs(trial.config, epochs):
            result = {"epoch": epoch, "error": error, "cost": cost}
            if epoch == epochs:
                search.on_trial_complete(trial, result)
            elif search.on_trial_result(trial, result) == SchedulerDecision.STOP:
                search.on_trial_remove(trial)
                break


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, which are all that these packages draw from; restore them."""
    before, before_numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with machine.seeded(seed, torch.device("cpu")):
            yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


def search(problem: Problem, run: Run, budget: float) -> Run:
    """Run a peer, the method of the run's arm, for a budget of epochs; the run receives the figures."""
    began = time.process_time()
    peer = {"primo": _primo, "syne-moasha": _syne_moasha}[run.arm.method]
    with warnings.catch_warnings(), _seeded(machine.derive_seed("peer", run.seed)):
        warnings.simplefilter("ignore")
        peer(Bench(problem, run, budget), problem.epochs)
    run.seconds = time.process_time() - began
    return run
