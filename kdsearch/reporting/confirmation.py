"""Confirmed students of a front: means and intervals over repeats, and whether the front's order survives them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdsearch import pareto
from kdsearch.records import ConfirmedRun, StudyAttr, confirmed_runs
from kdsearch.reporting import formatting
from kdsearch.stats import Interval, Spread, mean_exceeds, mean_interval, sittings_interval, spread, told_apart

COLUMNS = (
    "trial", "repeats", "epochs", "test_accuracy", "test_low", "test_high", "ratio", "ratio_low", "ratio_high"
)  # fmt: skip


@dataclass(frozen=True)
class Behind:
    """A member of the front that another member dominates once both are confirmed.

    Attributes:
        trial: the member.
        by: the member that dominates it, by confirmed mean test accuracy and mean ratio.
        clear: whether the difference exceeds noise (see `is_clear`).
        before: whether the search's own test accuracy and ratio had this order already: validation chooses a front.
    """

    trial: int
    by: int
    clear: bool
    before: bool


@dataclass(frozen=True)
class Order:
    """A front's order after its confirmation.

    Attributes:
        front: how many members the front has.
        confirmed: numbers of those that were confirmed, ascending.
        repeats: fewest and most runs of a confirmed member; (0, 0) without confirmed members.
        behind: all pairs of confirmed members of which one dominates the other, by `trial`, the clear ones first.
    """

    front: int
    confirmed: tuple[int, ...]
    repeats: tuple[int, int]
    behind: tuple[Behind, ...]

    @property
    def worst(self) -> list[Behind]:
        """Return one pair for each member that is behind: a clear one if there is any."""
        found: dict[int, Behind] = {}
        for pair in self.behind:
            found.setdefault(pair.trial, pair)
        return list(found.values())

    @property
    def staying(self) -> list[int]:
        """Return the confirmed members that no other confirmed member dominates."""
        fallen = {pair.trial for pair in self.behind}
        return [trial for trial in self.confirmed if trial not in fallen]


def confirmations(study_attrs: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row a confirmed trial, by number; accuracies are fractions.

    `test_accuracy` is the mean over repeats with Student's 95 % interval; each repeat timed the student anew, in a
    sitting of its own, and `ratio` is over these (`stats.sittings_interval`). With one repeat the ends are NaN.
    Malformed attributes and runs are dropped.

    Args:
        study_attrs: the user attributes of a study.
    """
    found = runs(study_attrs)
    pooled = spread([run.ratio for run in each] for each in found.values())
    rows = [
        _row(number, study_attrs[f"{StudyAttr.CONFIRMED}{number}"]["epochs"], each, pooled)
        for number, each in found.items()
    ]
    return pd.DataFrame(sorted(rows), columns=list(COLUMNS))


def runs(study_attrs: Mapping[str, Any], prefix: str = StudyAttr.CONFIRMED) -> dict[int, list[ConfirmedRun]]:
    """Return the runs of each confirmed trial (or of its control: `StudyAttr.CONTROL`); malformed ones are dropped."""
    known = {str(key): value for key, value in study_attrs.items() if str(key).startswith(prefix)}
    found = {_trial_number(key.removeprefix(prefix), value): confirmed_runs(value) for key, value in known.items()}
    return {number: kept for number, kept in found.items() if number is not None and kept}


def repeats(study_attrs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the runs per student that confirmation was begun with, then what that was raised to; empty if not kept."""
    stored = study_attrs.get(StudyAttr.REPEATS)
    whole = [n for n in stored if isinstance(n, int) and n >= 1] if isinstance(stored, list | tuple) else []
    return tuple(whole)


def _trial_number(text: str, value: object) -> int | None:
    """Return the number of the trial that an attribute belongs to; None where it is malformed."""
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or not isinstance(value, Mapping):
        return None
    if str(int(text)) != text:
        return None
    sound = value.get("trial") == int(text) and formatting.number(value.get("epochs")) >= 1
    return int(text) if sound else None


def _row(number: int, epochs: object, found: Sequence[ConfirmedRun], pooled: Spread) -> tuple[float, ...]:
    test = _mean([run.test_accuracy for run in found])
    return number, len(found), int(formatting.number(epochs)), *test, *_ratio([run.ratio for run in found], pooled)


def _mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean and interval over repeats; one value has no interval."""
    if len(values) == 1:
        return values[0], math.nan, math.nan
    found = mean_interval(values)
    return found.mean, found.low, found.high


def _ratio(ratios: Sequence[float], pooled: Spread) -> tuple[float, float, float]:
    """Return the ratio over sittings and its interval; one value has none."""
    found = sittings_interval(ratios, pooled) if len(ratios) > 1 else None
    return (ratios[0], math.nan, math.nan) if found is None else (found.mean, found.low, found.high)


def order(front: pd.DataFrame, confirmed: pd.DataFrame) -> Order:
    """Determine whether a front's order survives its confirmation.

    Args:
        front: one row a member, with `trial`, and the search's `test_accuracy` and `ratio`.
        confirmed: of `confirmations`; trials outside the front are ignored.
    """
    search = {int(row["trial"]): row for row in front.to_dict("records")}
    rows = {int(row["trial"]): row for row in confirmed.to_dict("records") if int(row["trial"]) in search}
    behind = [
        (Behind(trial, by, is_clear(better, row), pareto.dominates(_point(search[by]), _point(search[trial]))), better)
        for trial, row in rows.items()
        for by, better in rows.items()
        if pareto.dominates(_point(better), _point(row))
    ]
    behind.sort(key=lambda pair: (pair[0].trial, not pair[0].clear, -pair[1]["test_accuracy"], pair[0].by))
    counts = [int(row["repeats"]) for row in rows.values()]
    repeats = (min(counts), max(counts)) if counts else (0, 0)
    return Order(len(search), tuple(sorted(rows)), repeats, tuple(pair for pair, _ in behind))


def _point(row: Mapping[Any, Any]) -> tuple[float, float]:
    return formatting.number(row["test_accuracy"]), formatting.number(row["ratio"])


def is_clear(better: Mapping[Any, Any], worse: Mapping[Any, Any]) -> bool:
    """Whether one confirmed trial dominates another beyond noise.

    To dominate is to be ahead in accuracy *and* in ratio, so both have to be shown: the means of test accuracy by
    Welch's test at 5 % (`stats.mean_exceeds`), the ratios by the interval of their quotient (`stats.told_apart`). An
    intersection of two claims needs no correction for multiplicity; the many pairs of a front are not corrected for.
    Counted operations have no noise: where neither ratio varies, they are compared as they are, and equal ones are a
    tie that accuracy decides. An accuracy that does not vary over repeats is chance, not certainty, and one repeat
    shows no variation: neither is ever clear.

    Args:
        better, worse: rows of `confirmations`.
    """
    if min(int(row["repeats"]) for row in (better, worse)) < 2:
        return False
    if not mean_exceeds(
        *(Interval(*_ends(row, "test_accuracy", "test"), int(row["repeats"])) for row in (better, worse))
    ):
        return False
    ratios = [_ends(row, "ratio", "ratio") for row in (better, worse)]
    exact = all(low == high for _, low, high in ratios)
    return bool(better["ratio"] >= worse["ratio"]) and (exact or told_apart(*ratios))


def _ends(row: Mapping[Any, Any], value: str, prefix: str) -> tuple[float, float, float]:
    return tuple(formatting.number(row[name]) for name in (value, f"{prefix}_low", f"{prefix}_high"))  # type: ignore[return-value]


def sentence(found: Order, planned: Sequence[int] = ()) -> str:
    """Return the order as one sentence: "Confirmed with 5 seeds: 7 of 9 stay on the front; trial 12 falls behind ...".

    Args:
        found: what `order` returned.
        planned: of `repeats`.
    """
    if not found.confirmed:
        return "This front was never confirmed: `kdsearch confirm` trains its students again with new seeds."
    low, high = found.repeats
    seeds = f"{low} {'seed' if low == 1 else 'seeds'}" if low == high else f"{low} to {high} seeds"
    if planned and low < max(planned):
        seeds += f" of the {max(planned)} that were planned"
    if len(planned) > 1:
        seeds += f" ({planned[0]} at first, raised to {planned[-1]} later)"
    count, left = len(found.confirmed), found.front - len(found.confirmed)
    whose = f"{count}" if not left else f"the {count} confirmed of {found.front}"
    if found.behind:
        said = f"{len(found.staying)} of {whose} stay on the front; " + ", ".join(map(_falls, found.worst))
    else:
        said = (
            "its one member stays on the front"
            if found.front == 1
            else f"all {count if not left else whose[4:]} stay on the front"
        )
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
        confirmed: of `confirmations`.
        planned: of `repeats`.
    """
    found = order(front[front["on_front"].astype(bool)], confirmed)
    search = {int(row["trial"]): row for row in front.to_dict("records")}
    trials = []
    for row in confirmed.to_dict("records"):
        known = search.get(int(row["trial"]), {})
        figures = {str(key): _plain(value) for key, value in row.items()}
        before = {f"search_{name}": _plain(known.get(name)) for name in ("test_accuracy", "ratio")}
        gap = _plain(row["test_accuracy"] - formatting.number(before["search_test_accuracy"]))
        on_front = bool(known.get("on_front", False))
        trials.append({**figures, **before, "test_difference": gap, "on_front": on_front})
    behind = [{"trial": p.trial, "by": p.by, "clear": p.clear, "before": p.before} for p in found.behind]
    return {
        "study": study,
        "trials": trials,
        "front": found.front,
        "confirmed": list(found.confirmed),
        "staying": found.staying,
        "behind": behind,
        "sentence": sentence(found, planned),
    }


def _plain(value: object) -> int | float | None:
    """Convert a number for JSON: whole numbers to int, NaN to None."""
    if isinstance(value, int):
        return int(value)
    number = formatting.number(value)
    return None if math.isnan(number) else number
