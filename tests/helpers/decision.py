"""Measure the time that one decision of ParetoPruner takes in a long study."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import optuna
from optuna import Study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from kdsearch.pruning.pruner import ParetoPruner
from kdsearch.records import Attr

WIDTHS = (8, 16, 24, 32, 50, 75, 100, 150, 200, 300, 450, 600, 900, 1200)
DISTRIBUTIONS = {
    "width": CategoricalDistribution(WIDTHS),
    "loss_weight": FloatDistribution(0.0, 1.0),
    "temperature": FloatDistribution(1.0, 20.0, log=True),
    "batch_size": IntDistribution(16, 512, log=True),
}
MILLISECONDS = 1e3
AGAIN = 20  # repetitions of the read by itself


def _trial(random: np.random.Generator, epochs: int, seen: int, *, over: bool) -> FrozenTrial:
    """Return a trial of synthetic parameters whose error falls as a power of the epoch, with noise."""
    width = int(random.choice(WIDTHS))
    ratio = 3000.0 / width * float(random.uniform(0.9, 1.1))
    errors = 0.3 * width**-0.3 * np.arange(1, epochs + 1) ** -float(random.uniform(0.2, 0.6))
    accuracy = 1.0 - errors * random.uniform(0.9, 1.1, epochs)
    curve: dict[str, list[float | None]] = {"0": [None, ratio]}
    curve |= {str(epoch): [float(accuracy[epoch - 1]), ratio] for epoch in range(1, seen + 1)}
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if over else TrialState.RUNNING,
        values=[float(accuracy[:seen].max()), ratio] if over else None,
        params={
            "width": width,
            "loss_weight": float(random.uniform(0, 1)),
            "temperature": float(random.uniform(1, 20)),
            "batch_size": int(random.integers(16, 513)),
        },
        distributions=DISTRIBUTIONS,
        user_attrs={Attr.CURVE: curve},
    )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Turn the garbage collector off in the body, as `timeit` does, so that collections do not distort the timing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _read(study: Study) -> float:
    """Return the seconds of CPU time that reading all trials takes, the least of several times."""
    spent = []
    for _ in range(AGAIN):
        began = time.process_time()
        study.get_trials(deepcopy=False)
        spent.append(time.process_time() - began)
    return min(spent)


def decision(*, trials: int, epochs: int, decisions: int = 60, seed: int = 0) -> dict[str, Any]:
    """Time consecutive decisions about new trials at steps spread over their length, in an in-memory study.

    Args:
        trials: number of COMPLETE trials with a full curve in the history.
        epochs: of each.
        decisions: number of new trials, with one decision each.
        seed: of the synthetic curves.

    Returns:
        CPU milliseconds beyond the storage's read of all trials, garbage collection left out: `median_ms`,
        `worst_ms`, `cold_ms` (the first decision, which reads the whole history); `read_ms`; `trials`, `epochs`,
        `decisions`.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    random = np.random.default_rng(seed)
    study = optuna.create_study(directions=["maximize"] * 2)
    study.add_trials([_trial(random, epochs, epochs, over=True) for _ in range(trials)])
    rule = ParetoPruner(max_steps=epochs)
    read = _read(study)
    spent: list[float] = []
    for number in range(decisions + 1):
        study.add_trial(_trial(random, epochs, 1 + number % max(1, epochs - 1), over=False))
        frozen = study.get_trials(deepcopy=False)[-1]
        with _no_collection():
            began = time.process_time()
            rule.verdict(study, frozen)
            spent.append((time.process_time() - began - read) * MILLISECONDS)
        study.tell(frozen.number, state=TrialState.PRUNED)
    return {
        "trials": trials,
        "epochs": epochs,
        "decisions": decisions,
        "median_ms": statistics.median(spent[1:]),
        "worst_ms": max(spent[1:]),
        "cold_ms": spent[0],
        "read_ms": read * MILLISECONDS,
    }
