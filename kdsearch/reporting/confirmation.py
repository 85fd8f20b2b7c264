"""Confirmed students of a front: means and intervals over repeats, and whether the front's order survives them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from kdsearch import pareto
from kdsearch.records import ConfirmedRun, StudyAttr, confirmed_runs
from kdsearch.reporting.formatting import by, many, number, plain
from kdsearch.stats import Interval, mean_exceeds, mean_interval, sittings_interval, spread, told_apart

COLUMNS = (
    "trial", "repeats", "epochs", "test_accuracy", "test_low", "test_high", "ratio", "ratio_low", "ratio_high"
)  # fmt: skip


@dataclass(frozen=True)
class Behind:
    """A member of the front that another member dominates once both are confirmed."""

    trial: int  # the member's number
    by: int  # that of the one that dominates it, by confirmed mean test accuracy and mean ratio
    clear: bool  # whether the difference exceeds noise (see `is_clear`)
    before: bool  # whether the search's own figures on the test set had this order already: validation chooses a front


@dataclass(frozen=True)
class Order:
    """A front's order after its confirmation."""

    front: int  # how many members the front has
    confirmed: tuple[int, ...]  # numbers of those that were confirmed, ascending
    repeats: tuple[int, int]  # fewest and most runs of a confirmed member; (0, 0) without confirmed members
    behind: tuple[Behind, ...]  # all pairs of which one dominates the other, by `trial`, the clear ones first

    @property
    def worst(self) -> list[Behind]:
        """One pair for each member that is behind: a clear one if there is any."""
        return [next(pairs) for _, pairs in groupby(self.behind, key=lambda pair: pair.trial)]

    @property
    def staying(self) -> list[int]:
        """The confirmed members that no other confirmed member dominates."""
        fallen = {pair.trial for pair in self.behind}
        return [trial for trial in self.confirmed if trial not in fallen]


def confirmations(study_attrs: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row a confirmed trial, by number; accuracies are fractions.

    `test_accuracy` is the mean over repeats with Student's 95 % interval; each repeat timed the student anew, in a
    sitting of its own, and `ratio` is over these (`stats.sittings_interval`). With one repeat the ends are NaN.
    Malformed attributes and runs are dropped.
    """
    found = runs(study_attrs)
    pooled = spread([run.ratio for run in each] for each in found.values())
    rows = []
    for trial, each in sorted(found.items()):
        epochs = int(number(study_attrs[f"{StudyAttr.CONFIRMED}{trial}"]["epochs"]))
        ratios = [run.ratio for run in each]
        test = over_seeds([run.test_accuracy for run in each])
        ratio = sittings_interval(ratios, pooled) if len(ratios) > 1 else None
        ratio = ratio or Interval(ratios[0], math.nan, math.nan, 1)
        rows.append((trial, len(each), epochs, test.mean, test.low, test.high, ratio.mean, ratio.low, ratio.high))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def over_seeds(values: Sequence[float]) -> Interval:
    """Return the mean with Student's 95 % interval; one seed shows no spread, so its ends are NaN."""
    return mean_interval(values) if len(values) > 1 else Interval(values[0], math.nan, math.nan, 1)


def runs(study_attrs: Mapping[str, Any], prefix: str = StudyAttr.CONFIRMED) -> dict[int, list[ConfirmedRun]]:
    """Return the runs of each confirmed trial (or of its control: `StudyAttr.CONTROL`); malformed ones are dropped."""
    known = {str(key): value for key, value in study_attrs.items() if str(key).startswith(prefix)}
    found = {_trial_number(key.removeprefix(prefix), value): confirmed_runs(value) for key, value in known.items()}
    return {trial: kept for trial, kept in found.items() if trial is not None and kept}


def repeats(study_attrs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the runs per student that confirmation was begun with, then what that was raised to; empty if not kept."""
    stored = study_attrs.get(StudyAttr.REPEATS)
    return tuple(n for n in stored if isinstance(n, int) and n >= 1) if isinstance(stored, list | tuple) else ()


def _trial_number(text: str, value: object) -> int | None:
    if not re.fullmatch("0|[1-9][0-9]{0,8}", text) or not isinstance(value, Mapping):
        return None
    sound = value.get("trial") == int(text) and number(value.get("epochs")) >= 1
    return int(text) if sound else None


def order(front: pd.DataFrame, confirmed: pd.DataFrame) -> Order:
    """Determine whether a front's order survives its confirmation.

    Args:
        front: one row a member, with `trial`, and the search's `test_accuracy` and `ratio`.
        confirmed: of `confirmations`; trials outside the front are ignored.
    """
    search = by(front, "trial")
    rows = {trial: row for trial, row in by(confirmed, "trial").items() if trial in search}
    behind = [
        (Behind(trial, ahead, is_clear(better, row), _dominates(search[ahead], search[trial])), better)
        for trial, row in rows.items()
        for ahead, better in rows.items()
        if _dominates(better, row)
    ]
    behind.sort(key=lambda pair: (pair[0].trial, not pair[0].clear, -pair[1]["test_accuracy"], pair[0].by))
    counts = [int(row["repeats"]) for row in rows.values()]
    repeats = (min(counts), max(counts)) if counts else (0, 0)
    return Order(len(search), tuple(sorted(rows)), repeats, tuple(pair for pair, _ in behind))


def _dominates(better: Mapping[str, Any], worse: Mapping[str, Any]) -> bool:
    one, other = ((number(row["test_accuracy"]), number(row["ratio"])) for row in (better, worse))
    return pareto.dominates(one, other)


def is_clear(better: Mapping[str, Any], worse: Mapping[str, Any]) -> bool:
    """Whether one confirmed trial dominates another beyond noise; both are rows of `confirmations`.

    To dominate is to be ahead in accuracy *and* in ratio, so both have to be shown: the means of test accuracy by
    Welch's test at 5 % (`stats.mean_exceeds`), the ratios by the interval of their quotient (`stats.told_apart`). An
    intersection of two claims needs no correction for multiplicity; the many pairs of a front are not corrected for.
    Counted operations have no noise: where neither ratio varies, they are compared as they are, and equal ones are a
    tie that accuracy decides. An accuracy that does not vary over repeats is chance, not certainty, and one repeat
    shows no variation: neither is ever clear.
    """
    tests = [Interval(*_ends(row, "test_accuracy", "test"), int(row["repeats"])) for row in (better, worse)]
    if min(test.n for test in tests) < 2 or not mean_exceeds(*tests):
        return False
    ratios = [_ends(row, "ratio", "ratio") for row in (better, worse)]
    exact = all(low == high for _, low, high in ratios)
    return bool(better["ratio"] >= worse["ratio"]) and (exact or told_apart(*ratios))


def _ends(row: Mapping[str, Any], value: str, prefix: str) -> tuple[float, float, float]:
    return number(row[value]), number(row[f"{prefix}_low"]), number(row[f"{prefix}_high"])


def sentence(found: Order, planned: Sequence[int] = ()) -> str:
    """Return the order as one sentence: "Confirmed with 5 seeds: 7 of 9 stay on the front; trial 12 falls ..."."""
    if not found.confirmed:
        return "This front was never confirmed: `kdsearch confirm` trains its students again with new seeds."
    low, high = found.repeats
    seeds = many(low, "seed") if low == high else f"{low} to {high} seeds"
    if planned and low < max(planned):
        seeds += f" of the {max(planned)} that were planned"
    if len(planned) > 1:
        seeds += f" ({planned[0]} at first, raised to {planned[-1]} later)"
    count, left = len(found.confirmed), found.front - len(found.confirmed)
    whose = f"{count}" if not left else f"the {count} confirmed of {found.front}"
    if found.behind:
        said = f"{len(found.staying)} of {whose} stay on the front; " + ", ".join(map(_falls, found.worst))
    elif found.front == 1:
        said = "its one member stays on the front"
    else:
        said = f"all {whose.removeprefix('the ')} stay on the front"
    single = "" if low > 1 else "; one seed shows no spread, so there are no intervals"
    return f"Confirmed with {seeds}: {said}{single}."


def _falls(pair: Behind) -> str:
    how = "clear" if pair.clear else "within noise"
    how += ", as by the search's own test accuracy" if pair.before else ""
    return f"trial {pair.trial} falls behind trial {pair.by} ({how})"


def result(study: str, front: pd.DataFrame, confirmed: pd.DataFrame, planned: Sequence[int] = ()) -> dict[str, Any]:
    """Return what `kdsearch confirm --json` prints: strict JSON, accuracies as fractions, None for what is not known.

    Args:
        study: its name.
        front: as in `order`, and rows of other confirmed trials; `on_front` distinguishes them.
        confirmed, planned: of `confirmations` and `repeats`.
    """
    found = order(front[front["on_front"].astype(bool)], confirmed)
    search = by(front, "trial")
    trials = []
    for trial, row in by(confirmed, "trial").items():
        known = search.get(trial, {})
        before = {f"search_{name}": number(known.get(name)) for name in ("test_accuracy", "ratio")}
        gap = row["test_accuracy"] - before["search_test_accuracy"]
        trials.append({**row, **before, "test_difference": gap, "on_front": bool(known.get("on_front", False))})
    return {
        "study": study,
        "trials": plain(trials),
        "front": found.front,
        "confirmed": list(found.confirmed),
        "staying": found.staying,
        "behind": [asdict(pair) for pair in found.behind],
        "sentence": sentence(found, planned),
    }
