"""What replays say: epochs to a share of the best hypervolume, speed-ups, paired tests, and the project's bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdsearch.experiments.search_bench.replay import ALL, Arm, Run, Steps
from kdsearch.experiments.search_bench.run import RANDOM, Measured

SHARES = (0.95, 0.98, 0.99)
METRICS = ("best_trials", "checkpoints")
RIVALS = ("moasha", "hub", "dominance", "none")
RESAMPLES = 2000
SIGNIFICANT = 0.05
PRUNER_BAR, OURS_BAR = 1.5, 2.0  # times fewer epochs than without pruning
TPE_BARS = {"mnist": 3.0}  # times fewer epochs than unpruned TPE with 100 trials, by data set
TPE_BAR = 2.0

Floats = NDArray[np.float64]


def reached(steps: Steps, level: float) -> int | None:
    """Epochs spent when a hypervolume was reached; None: never."""
    return next((epochs for epochs, volume in steps if volume >= level - 1e-12), None)


def at(steps: Steps, epochs: float) -> float:
    """Hypervolume after so many epochs."""
    return max((volume for when, volume in steps if when <= epochs), default=0.0)


def epochs_to(measured: Measured, arm: str, share: float, metric: str = METRICS[0]) -> Floats:
    """(seeds,): epochs to a share of the table's best; a seed that never gets there counts as the budget."""
    level = share * measured.table.best
    found = [reached(getattr(run, metric), level) for run in measured.arms[arm]]
    return np.array([measured.budget if epochs is None else epochs for epochs in found], dtype=np.float64)


def reach(measured: Measured, arm: str, share: float, metric: str = METRICS[0]) -> float:
    """Share of the seeds that reach a share of the table's best within the budget."""
    level = share * measured.table.best
    return float(np.mean([reached(getattr(run, metric), level) is not None for run in measured.arms[arm]]))


def finals(measured: Measured, arm: str, metric: str = METRICS[0]) -> Floats:
    """(seeds,): hypervolume at the budget, as a share of the table's best."""
    return np.array([at(getattr(run, metric), measured.budget) for run in measured.arms[arm]]) / measured.table.best


def quartiles(values: Floats) -> list[float]:
    """Median, lower and upper quartile."""
    return [float(value) for value in np.quantile(values, [0.5, 0.25, 0.75])]


def speedup(base: Floats, ours: Floats) -> dict[str, Any]:
    """Ratio of medians, base / ours, with the 95 % interval of a paired bootstrap over seeds.

    Args:
        base, ours: (seeds,), epochs.

    Returns:
        `ratio`, `low`, `high`.
    """
    draws = np.random.default_rng(0).integers(len(base), size=(RESAMPLES, len(base)))
    ratios = np.median(base[draws], axis=1) / np.median(ours[draws], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {"ratio": float(np.median(base) / np.median(ours)), "low": float(low), "high": float(high)}


def paired(ours: Floats, other: Floats) -> dict[str, Any]:
    """Wilcoxon's signed-rank test, two-sided, of values that belong together by seed; more is better.

    Returns:
        `wins`, `ties`, `losses`, `difference` (median of ours - other) and `p` (1 where all are ties).
    """
    from scipy.stats import wilcoxon

    apart = ours - other
    return {
        "wins": int((apart > 0).sum()),
        "ties": int((apart == 0).sum()),
        "losses": int((apart < 0).sum()),
        "difference": float(np.median(apart)),
        "p": float(wilcoxon(ours, other).pvalue) if apart.any() else 1.0,
    }


def _arm(measured: Measured, key: str) -> dict[str, Any]:
    runs = measured.arms[key]
    arm = runs[0].arm
    found: dict[str, Any] = {
        "sampler": arm.sampler,
        "epochs": arm.epochs,
        "method": arm.method,
        "workers": arm.workers,
        "trials": float(np.median([run.trials for run in runs])),
        "cpu_seconds": float(np.median([run.seconds for run in runs])),
    }
    for metric in METRICS:
        found[metric] = {
            "epochs_to": {str(share): quartiles(epochs_to(measured, key, share, metric)) for share in SHARES},
            "reach": {str(share): reach(measured, key, share, metric) for share in SHARES},
            "final": quartiles(finals(measured, key, metric)),
        }
    base = Arm(arm.sampler, arm.epochs, "none", arm.workers).key
    if base != key:
        found["speedup"] = {
            str(share): speedup(epochs_to(measured, base, share), epochs_to(measured, key, share)) for share in SHARES
        }
    return found


def _to_tpe(measured: Measured, arm: str) -> Floats:
    """(seeds,): epochs to what unpruned TPE with 100 trials ends with, at the same seed; the budget where never."""
    found = [
        reached(run.best_trials, tpe.best_trials[-1][1] if tpe.best_trials else 0.0)
        for run, tpe in zip(measured.arms[arm], measured.tpe, strict=True)
    ]
    return np.array([measured.budget if epochs is None else epochs for epochs in found], dtype=np.float64)


def _own_final(runs: Sequence[Run]) -> Floats:
    return np.array([run.best_trials[-1][0] for run in runs], dtype=np.float64)


def random_arm(method: str) -> str:
    """Key of the arm with random proposals and all epochs, where the bars stand."""
    return Arm("random", ALL, method).key


def summarise(measured: Measured) -> dict[str, Any]:
    """One table's figures, as `kdsearch bench search --json` prints them.

    Returns:
        For random proposals with all epochs `speedup`, `reach_99` and `epochs_to_tpe_final`; `arms`, with quartiles
        as [median, lower, upper]; `paired`, ours against others; `budget`, `seeds`, `best`.
    """
    arms = {key: _arm(measured, key) for key in measured.arms}
    own = finals(measured, random_arm("ours"))
    ours, pruner = arms[random_arm("ours")]["speedup"], arms[random_arm("pruner")]["speedup"]
    return {
        "speedup": {share: ours[share]["ratio"] for share in ("0.95", "0.98")},
        "speedup_pruner": {share: pruner[share]["ratio"] for share in ("0.95", "0.98")},
        "reach_99": {method: reach(measured, random_arm(method), 0.99) for method in RANDOM},
        "epochs_to_tpe_final": {
            "ours": float(np.median(_to_tpe(measured, random_arm("ours")))),
            "tpe": float(np.median(_own_final(measured.tpe))),
        },
        "paired": {method: paired(own, finals(measured, random_arm(method))) for method in RIVALS},
        "budget": measured.budget,
        "seeds": list(measured.seeds),
        "best": measured.table.best,
        "reference": list(measured.table.reference),
        "arms": arms,
    }


@dataclass(frozen=True)
class Bar:
    """One of the project's bars on one table.

    Attributes:
        table, what: where and what is asked.
        bar: what must hold.
        figure: what was measured.
        met: whether it holds.
    """

    table: str
    what: str
    bar: str
    figure: str
    met: bool


def bars(table: Measured, found: dict[str, Any]) -> list[Bar]:
    """The bars that replays can show, met or not.

    Args:
        table: the replays.
        found: their summary.
    """
    name = table.table.name
    result: list[Bar] = []
    for method, least in (("pruner", PRUNER_BAR), ("ours", OURS_BAR)):
        for share in ("0.95", "0.98"):
            value = found["arms"][random_arm(method)]["speedup"][share]
            figure = f"{value['ratio']:.2f}x ({value['low']:.2f} to {value['high']:.2f})"
            what = f"epochs to {float(share):.0%} of the best hypervolume: {method}"
            result.append(Bar(name, what, f"{least:g}x fewer", figure, value["ratio"] >= least))
    rates = found["reach_99"]
    result.append(
        Bar(
            name,
            "seeds that reach 99 %: ours",
            f"at least {rates['none']:.0%}, as without pruning",
            f"{rates['ours']:.0%}",
            rates["ours"] >= rates["none"],
        )
    )
    spent = found["epochs_to_tpe_final"]
    least = TPE_BARS.get(table.table.provenance["study_file"]["data"]["name"], TPE_BAR)
    figure = f"{spent['ours']:.0f} of {spent['tpe']:.0f} ({spent['tpe'] / spent['ours']:.2f}x fewer)"
    what = "epochs to the final hypervolume of unpruned TPE with 100 trials: ours"
    result.append(Bar(name, what, f"{least:g}x fewer", figure, spent["tpe"] >= least * spent["ours"]))
    for rival in ("moasha", "hub"):
        test = found["paired"][rival]
        figure = f"{test['wins']} / {test['ties']} / {test['losses']}, p = {test['p']:.2g}"
        met = test["wins"] > test["losses"] and test["p"] < SIGNIFICANT
        what = f"final hypervolume: ours against {rival} (wins / ties / losses)"
        result.append(Bar(name, what, f"better, p < {SIGNIFICANT:g}", figure, met))
    return result


def band(measured: Measured, arm: str, epochs: Sequence[int], metric: str = METRICS[0]) -> Floats:
    """(3, epochs): median and quartiles over seeds of the hypervolume, as a share of the table's best."""
    volumes = np.array([[at(getattr(run, metric), e) for e in epochs] for run in measured.arms[arm]])
    found: Floats = np.quantile(volumes / measured.table.best, [0.5, 0.25, 0.75], axis=0)
    return found
