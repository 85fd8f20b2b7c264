"""Statistics of replays: hypervolume at shares of the budget, pairwise tests of arms over tasks, mean ranks, bars."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

from kdsearch import stats
from kdsearch.experiments.search_bench.replay import Steps
from kdsearch.experiments.search_bench.run import DEFAULT, PEERS, RIVALS, Measured

BUDGETS = (1 / 8, 1 / 4, 1 / 2, 1.0)
METRICS = ("checkpoints", "best_trials", "by_truth")  # the first one decides
RESAMPLES = 2000
SIGNIFICANT = 0.05
LEVELS = (0.95, 0.98)
QUARTILES = (0.5, 0.25, 0.75)  # the median first
TPE = "tpe/all/none"
BARS = (
    ("ours against no pruning, same proposals (random)", "random/all/ours", "random/all/proposals", "end"),
    ("ours against no pruning, same proposals (TPE)", DEFAULT.key, "tpe/all/proposals", "end"),
    ("ours against no pruning, random draws", "random/all/pruner", "random/all/none", "end"),
    ("the default against plain TPE", DEFAULT.key, TPE, "all"),
    ("the default against MO-ASHA, random draws", DEFAULT.key, "random/all/moasha", "all"),
    ("the default against MO-ASHA with our proposals", DEFAULT.key, RIVALS[0].key, "all"),
    ("the default against same-epoch dominance with our proposals", DEFAULT.key, RIVALS[1].key, "all"),
    ("the pruner against MO-ASHA, random draws", "random/all/pruner", "random/all/moasha", "all"),
    ("the pruner with pace=1 against MO-ASHA, random draws", "random/all/pruner-pace-1", "random/all/moasha", "all"),
    ("the default against NePS's PriMO", DEFAULT.key, PEERS["primo"].key, "all"),
    ("the default against Syne Tune's MOASHA", DEFAULT.key, PEERS["syne-moasha"].key, "all"),
)
"""Questions, with the keys of two arms, and when the first must do well: at the end, or at all budgets."""
SOONER = 2.0  # times as soon as plain TPE, the default is to be where that ends

Floats = NDArray[np.float64]


def at(steps: Steps, epochs: float) -> float:
    """Return the hypervolume after a number of epochs; 0 before the first step."""
    return next((volume for when, volume in reversed(steps) if when <= epochs), 0.0)


def reached(steps: Steps, level: float, budget: float) -> float:
    """Return the epochs spent when a hypervolume was reached; the budget where it never was."""
    return next((float(epochs) for epochs, volume in steps if volume >= level - 1e-12), float(budget))


def shares(measured: Measured, arm: str, metric: str = METRICS[0]) -> Floats:
    """Return (seeds, budgets): hypervolume at each of `BUDGETS`, as a share of the problem's best."""
    volumes = [[at(getattr(run, metric), share * measured.budget) for share in BUDGETS] for run in measured.arms[arm]]
    return np.array(volumes) / measured.problem.best


def epochs_to(measured: Measured, arm: str, level: float) -> Floats:
    """Return (seeds,): epochs to a share of the problem's best; the budget where it is never reached."""
    wanted = level * measured.problem.best
    return np.array([reached(getattr(run, METRICS[0]), wanted, measured.budget) for run in measured.arms[arm]])


def sooner(measured: Measured, arm: str, other: str) -> Floats:
    """Return (seeds,): how many times as soon as another arm one has what the other ends with; 0 where it never has.

    Both are counted up to the epoch at which they first had it.
    """
    times = []
    for ours, theirs in zip(measured.arms[arm], measured.arms[other], strict=True):
        steps, level = getattr(ours, METRICS[0]), at(getattr(theirs, METRICS[0]), measured.budget)
        needed = reached(steps, level, math.inf)
        times.append(reached(getattr(theirs, METRICS[0]), level, measured.budget) / needed)
    return np.array(times)


def below(measured: Sequence[Measured], arm: str, other: str) -> dict[str, tuple[float, float]]:
    """Return the problems on which an arm ends significantly below another one over seeds: p alone and by Holm."""
    tests = [paired(shares(one, arm)[:, -1], shares(one, other)[:, -1]) for one in measured]
    adjusted = stats.holm([test["p"] for test in tests], tests=len(tests))
    return {
        one.problem.name: (test["p"], p)
        for one, test, p in zip(measured, tests, adjusted, strict=True)
        if test["difference"] < 0 and test["p"] < SIGNIFICANT
    }


def common_arms(measured: Sequence[Measured]) -> list[str]:
    """Return the keys of the arms that every problem has."""
    return [key for key in measured[0].arms if all(key in one.arms for one in measured)]


def by_task(measured: Sequence[Measured]) -> dict[str, Floats]:
    """Return (tasks, budgets) by arm: the median over seeds of the share of the best; a task is one observation."""
    return {key: np.array([np.median(shares(one, key), axis=0) for one in measured]) for key in common_arms(measured)}


def paired(ours: Floats, other: Floats) -> dict[str, Any]:
    """Apply Wilcoxon's signed-rank test, two-sided, to paired values; more is better.

    Returns:
        `wins`, `ties`, `losses`, `difference` (median of ours - other) and `p` (1 where all are ties).
    """
    apart = ours - other
    return {
        "wins": int((apart > 0).sum()),
        "ties": int((apart == 0).sum()),
        "losses": int((apart < 0).sum()),
        "difference": float(np.median(apart)),
        "p": float(wilcoxon(ours, other).pvalue) if apart.any() else 1.0,
    }


def _samples(measured: Sequence[Measured]) -> tuple[str, dict[str, Floats]]:
    """Return the unit of the tests, and (units, budgets) by arm: tasks, or the seeds of a single task."""
    if len(measured) == 1:
        return "seeds", {key: shares(measured[0], key) for key in measured[0].arms}
    return "tasks", by_task(measured)


def _tests(ours: Floats, other: Floats) -> list[dict[str, Any]]:
    """Return `paired` of (units, budgets) at each budget."""
    return [paired(a, b) for a, b in zip(ours.T, other.T, strict=True)]


def mean_ranks(values: dict[str, Floats]) -> dict[str, list[dict[str, float]]]:
    """Return the mean rank over tasks (1 is best) with a 95 % bootstrap interval over tasks: by arm, at each budget.

    The values are (tasks, budgets) by arm.
    """
    stacked = np.array(list(values.values()))  # (arms, tasks, budgets)
    ranks = rankdata(-stacked, axis=0)
    draws = np.random.default_rng(0).integers(ranks.shape[1], size=(RESAMPLES, ranks.shape[1]))
    means = ranks[:, draws].mean(axis=2)  # (arms, resamples, budgets)
    low, high = np.quantile(means, [0.025, 0.975], axis=1)
    return {
        key: [
            {"rank": float(ranks[i, :, b].mean()), "low": float(low[i, b]), "high": float(high[i, b])}
            for b in range(ranks.shape[2])
        ]
        for i, key in enumerate(values)
    }


def summarise(measured: Sequence[Measured]) -> dict[str, Any]:
    """Return all figures, as `kdsearch bench search --json` prints them.

    Returns:
        `budgets`; `tasks`: by name, budget, seeds, best, and by arm the quartiles of the share of the best at each
        budget (as [median, lower, upper]), for each metric, with `epochs_to` and CPU seconds; `ranks`: see
        `mean_ranks`; `pairs`: every pair of arms at every budget, over tasks (over seeds where there is one task).
    """
    unit, samples = _samples(measured)
    pairs = [
        {"arm": one, "other": other, "unit": unit, "tests": _tests(samples[one], samples[other])}
        for one, other in itertools.combinations(samples, 2)
    ]
    return {
        "budgets": list(BUDGETS),
        "tasks": {one.problem.name: _task(one) for one in measured},
        "ranks": mean_ranks(by_task(measured)),
        "pairs": pairs,
    }


def _quartiles(values: Floats) -> list[float]:
    return [float(value) for value in np.quantile(values, QUARTILES)]


def _task(one: Measured) -> dict[str, Any]:
    found = {
        key: {metric: [_quartiles(column) for column in shares(one, key, metric).T] for metric in METRICS}
        | {
            "epochs_to": {str(level): _quartiles(epochs_to(one, key, level)) for level in LEVELS},
            "trials": float(np.median([run.trials for run in runs])),
            "cpu_seconds": float(np.median([run.seconds for run in runs])),
        }
        for key, runs in one.arms.items()
    }
    return {
        "budget": one.budget,
        "seeds": list(one.seeds),
        "best": one.problem.best,
        "reference": list(one.problem.reference),
        "arms": found,
    }


@dataclass(frozen=True)
class Bar:
    """A question of the comparison, its condition, the measured figure, and whether that meets the condition."""

    what: str
    bar: str
    figure: str
    met: bool


def bars(measured: Sequence[Measured]) -> list[Bar]:
    """Judge `BARS`, as far as their arms were measured, and how soon the default is where plain TPE ends."""
    unit, samples = _samples(measured)
    each = _testable(measured)
    found = [
        _bar(what, unit, _tests(samples[ours], samples[other]), when, below(measured, ours, other) if each else None)
        for what, ours, other, when in BARS
        if ours in samples and other in samples
    ]
    if DEFAULT.key in samples and TPE in samples:
        found.append(_soon(unit, [sooner(one, DEFAULT.key, TPE) for one in measured]))
    return found


def _bar(
    what: str, unit: str, tests: Sequence[dict[str, Any]], when: str, worse: dict[str, tuple[float, float]] | None
) -> Bar:
    """Judge all units, and each task as well, by `below`, unless that is None."""
    end = tests[-1]
    figure = ", ".join(f"{test['wins']}/{test['ties']}/{test['losses']}" for test in tests)
    figure += f" {unit} at 1/8, 1/4, 1/2 and all; at the end {end['difference']:+.4f}, p = {end['p']:.2g}"
    if when == "end":
        bar, met = "not significantly worse at the end", not (end["difference"] < 0 and end["p"] < SIGNIFICANT)
    else:
        bar, met = f"better on most {unit} at every budget", all(test["wins"] > test["losses"] for test in tests)
    if worse is not None:
        bar += ", significantly worse on no task at the end (over seeds, Holm)"
        alone = ", ".join(f"{name} (p = {p:.2g}, Holm {adjusted:.2g})" for name, (p, adjusted) in worse.items())
        figure += f"; worse on {alone or 'none'}"
        met = met and all(adjusted >= SIGNIFICANT for _, adjusted in worse.values())
    return Bar(what, bar, figure, met)


def _testable(measured: Sequence[Measured]) -> bool:
    """Whether there are several problems, and seeds enough for the smallest p of one of them to stand among as many."""
    return len(measured) > 1 and len(measured) * 2 / 2 ** len(measured[0].seeds) < SIGNIFICANT


def _soon(unit: str, times: Sequence[Floats]) -> Bar:
    """Judge how soon the default is where plain TPE ends: the median over units, whose interval must be above."""
    units = times[0] if len(times) == 1 else np.array([np.median(one) for one in times])
    middle, low, high = stats.median_interval(units.tolist())
    return Bar(
        "the default is where plain TPE ends", f"{SOONER:.0f} times as soon, median over {unit}, lower bound",
        f"{middle:.2f} times ({low:.2f} to {high:.2f}); never on {int((units == 0).sum())} of {len(units)}",
        low >= SOONER,
    )  # fmt: skip


def band(measured: Measured, arm: str, epochs: Sequence[int]) -> Floats:
    """Return (3, epochs): median and quartiles over seeds of the hypervolume, as a share of the problem's best."""
    volumes = np.array([[at(getattr(run, METRICS[0]), e) for e in epochs] for run in measured.arms[arm]])
    found: Floats = np.quantile(volumes / measured.problem.best, QUARTILES, axis=0)
    return found
