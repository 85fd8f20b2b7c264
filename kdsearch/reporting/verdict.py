"""The recommendation of a study: the student to ship, in one sentence, picks from its front, and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdsearch.records import Attr
from kdsearch.reporting import formatting
from kdsearch.reporting.choice import Shipping, Standing, fastest, ship, standing
from kdsearch.reporting.collect import CONFIG, StudyData, configuration
from kdsearch.reporting.formatting import by, many, number, records

LEAST_GAIN = 0.05  # points of accuracy: less would be printed as 0.0
SHIP, ACCURATE, KNEE, FASTEST = "To ship", "Most accurate", "Knee", "Fastest"


@dataclass(frozen=True)
class Pick:
    """A notable member of the front."""

    title: str  # SHIP, ACCURATE, KNEE or FASTEST
    why: str  # what the title means, in a few words
    row: dict[str, Any]  # of `StudyData.trials`
    config: dict[str, Any]


def knee(front: pd.DataFrame) -> int:
    """Return the number of the front's trial with the best trade-off of both objectives.

    Validation accuracy and log10 ratio are scaled so that the front's worst is 0 and its best is 1; the knee
    has the largest product of the two. The ends of the front have the product 0, so with one or two members
    (and among equal products) the more accurate one is taken, then the one with the lower number.

    Args:
        front: `StudyData.front`, at least one row, ratios above 0.
    """
    accuracy = [float(value) for value in front["accuracy"]]
    speed = [math.log10(ratio) if ratio > 0 else -math.inf for ratio in front["ratio"]]

    def scaled(values: list[float]) -> list[float]:
        low, high = min(values), max(values)
        return [(v - low) / (high - low) if math.isfinite(low) and high > low else 0.0 for v in values]

    merits = [a * s for a, s in zip(scaled(accuracy), scaled(speed), strict=True)]
    *_, best = max(zip(merits, accuracy, -front["number"], strict=True))
    return -int(best)


def picks(data: StudyData) -> list[Pick]:
    """Return those to ship (if any), most accurate by validation, knee, fastest; a trial may be picked repeatedly.

    Empty without a front.
    """
    front = data.front
    if front.empty:
        return []
    rows = by(front, "number")
    best = max(rows.values(), key=lambda row: (row["accuracy"], row["ratio"], -row["number"]))
    found = [
        (ACCURATE, "the best validation accuracy", best),
        (KNEE, "gives up least on both together", rows[knee(front)]),
        (FASTEST, "the largest inference ratio, within its noise", fastest([*rows.values()])),
    ]
    chosen = ship(data).chosen
    if chosen is not None:
        found.insert(0, (SHIP, f"the fastest within {_points(data.within)} of the teacher", chosen.row))
    trials = by(data.trials, "number")
    return [Pick(title, why, own := trials[row["number"]], configuration(own)) for title, why, row in found]


def verdict(data: StudyData) -> str:
    """Name the student to ship, or why there is none and which one is nearest: `headline` and `details`."""
    return f"{headline(data)} {details(data)}".rstrip()


def headline(data: StudyData) -> str:
    """Say in one sentence which student to ship, how fast it is, how much worse, and with what confidence."""
    if data.front.empty:
        return _nothing(data.counts)
    found = ship(data)
    if found.chosen is not None:
        return f"Ship {_name(found.chosen.row)}: {sentence(data, found.chosen)}."
    if found.nearest is not None:
        return f"{none_within(data, found)}: {sentence(data, found.nearest)}."
    row = next(pick.row for pick in picks(data) if pick.title == KNEE)
    told = f"{'needs' if data.cost == 'flops' else 'is'} {worth(data, row).removesuffix('.')}"
    name = _name(row).replace("trial", "Trial", 1)
    return f"{name}, the knee of the front, {told}; how far it is below the teacher is not known."


def details(data: StudyData) -> str:
    """Return further facts on that student as a second sentence; empty where nothing is known."""
    if data.front.empty:
        return ""
    found = ship(data)
    of = found.chosen or found.nearest
    if of is None:
        return ""
    lead = f"The fastest shown to be within {_points(found.within)} of the teacher"
    if not found.faster:
        lead = f"Only a student {_quicker(data)} than the teacher is one to ship"
    elif found.chosen is None:
        beyond = max(100 * of.bound - found.within, 0.1)
        lead = f"That bound exceeds the allowed {_points(found.within)} by {beyond:.1f}"
    return f"{lead}; {'; '.join(_more(data, of))}."


def none_within(data: StudyData, found: Shipping) -> str:
    """Say that no student qualifies, and which is nearest; `found.nearest` must be set."""
    assert found.nearest is not None
    near = _name(found.nearest.row)
    if not found.faster:
        return f"No student here is {_quicker(data)} than the teacher; the nearest in accuracy is {near}"
    return f"No student is shown to be within {_points(found.within)} of the teacher; the nearest is {near}"


def _quicker(data: StudyData) -> str:
    return "of fewer operations" if data.cost == "flops" else "faster"


def looks(data: StudyData, found: Shipping) -> str:
    """Say how the student to ship was chosen, and how often the test set was looked at."""
    if found.nearest is None:
        return ""
    within = f"within {_points(found.within)} of the teacher"
    if not found.faster:
        return f"No student of the front is {_quicker(data)} than the teacher, so none is a candidate."
    if not found.candidates:
        return f"Validation puts no student of the front that is {_quicker(data)} than the teacher {within}."
    known = not math.isnan(number((data.teacher or {}).get("validation_accuracy")))
    return (
        f"Validation chose the candidates: {many(found.candidates, 'student')} on the front or confirmed near it"
        f"{f' that validation puts {within}' if known else ''}. "
        f"The test set bounds each, the fastest first; it was looked at for {found.looks} of them, and no bound is "
        "corrected for that."
    )


def sentence(data: StudyData, of: Standing) -> str:
    """Return half a sentence on a student: how fast, how much worse, with what confidence."""
    return f"{_fast(data, of.row)}, {_below(of)}"


def worth(data: StudyData, row: dict[str, Any]) -> str:
    """Return `sentence` with further facts for any trial; bare figures where teacher or test set is not known."""
    found = standing(data, row)
    if found is not None:
        more = "; ".join(_more(data, found))
        return f"{sentence(data, found)}. {more[0].upper()}{more[1:]}."
    tested = not math.isnan(row["test_accuracy"])
    accuracy = formatting.percent(row["test_accuracy" if tested else "accuracy"], 1)
    return f"{_fast(data, row)} at {accuracy} {'test' if tested else 'validation'} accuracy."


def _more(data: StudyData, of: Standing) -> list[str]:
    span = formatting.ratio_of(of.row).partition(" (")[2].removesuffix(")")
    ours = of.row["test_accuracy"]
    theirs = ours + of.below
    errors = f"{formatting.ratio((1 - ours) / (1 - theirs))} times the teacher's errors" if 0 < theirs < 1 else ""
    parts = [f"ratio {span} (95 %)" if span else "", _microseconds(data, of.row), errors, _sure(of), _beaten(data, of)]
    return [*filter(None, parts)]


def _fast(data: StudyData, row: dict[str, Any]) -> str:
    slower = 0 < row["ratio"] < 1
    words = ("fewer operations than", "more operations than") if data.cost == "flops" else ("as fast as", "slower than")
    return f"{formatting.ratio(1 / row['ratio'] if slower else row['ratio'])} times {words[slower]} the teacher"


def _microseconds(data: StudyData, row: dict[str, Any]) -> str:
    times = {"microseconds": f"an image at batch {data.timed_batch}", "microseconds_1": "at batch 1"}
    known = {name: what for name, what in times.items() if number(row.get(name)) > 0}
    return ", ".join(f"{formatting.microseconds(row[name])} µs {what}" for name, what in known.items())


def _below(of: Standing) -> str:
    theirs = formatting.percent(of.row["test_accuracy"] + of.below, 1)
    gap, bound = 100 * of.below, 100 * of.bound
    where = f"at its {theirs} test accuracy"
    if abs(gap) >= LEAST_GAIN:
        where = f"{abs(gap):.1f} points {'below' if gap > 0 else 'above'} its {theirs} test accuracy"
    least = f"at most {bound:.1f} below" if bound >= LEAST_GAIN else "not below it"
    return f"{where} ({least} with 95 % confidence)"


def _sure(of: Standing) -> str:
    seeds = "one seed, not confirmed, so the bound is over test images alone"
    if of.seeds:
        seeds = f"confirmed with {many(of.seeds, 'new seed')}"
    return seeds if of.paired else f"{seeds}, accuracies not paired by image"


def _beaten(data: StudyData, of: Standing) -> str:
    """Name the most accurate slide row measured here that the student beats without being slower.

    Both by their confirmed figures, or else both by the search's single runs.
    """
    confirmed, trials = by(data.confirmed, "trial"), by(data.trials, "number")
    found = []
    for anchor in records(data.anchors):
        own, theirs = trials[of.row["number"]], anchor
        if math.isnan(number(anchor["trial"])) or anchor["trial"] == own["number"]:
            continue
        both = of.seeds > 0 and anchor["trial"] in confirmed
        if both:
            own, theirs = confirmed[own["number"]], confirmed[anchor["trial"]]
        gain = 100 * (own["test_accuracy"] - theirs["test_accuracy"])
        if theirs["ratio"] <= own["ratio"] and gain >= LEAST_GAIN:
            found.append((theirs["test_accuracy"], gain, theirs["ratio"] == own["ratio"], both, anchor))
    if not found:
        return ""
    _, gain, same, both, anchor = max(found, key=lambda each: each[0])
    how = "both confirmed" if both else "one seed each"
    epochs = [configuration(trials[n]).get("epochs") for n in (of.row["number"], anchor["trial"])]
    if None not in epochs:
        how += ", equal epochs" if epochs[0] == epochs[1] else f", {epochs[0]} epochs against {epochs[1]}"
    pace = "the same" if same else "a higher"
    row = f"row {anchor['anchor']} of the slide deck, run in this study"
    return f"it beats {row}, by {gain:.1f} points at {pace} ratio ({how})"


def _name(row: dict[str, Any]) -> str:
    return f"trial {row['number']}" + (f" (slide row {row['anchor']})" if row["anchor"] else "")


def _points(value: float) -> str:
    return f"{value:g} point{'' if value == 1 else 's'}"


def _nothing(counts: dict[str, int]) -> str:
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if not states:
        return "This study has no trials yet, so there is no student to choose."
    if counts["failed"] == sum(counts.values()):
        return f"All trials failed ({states}), so there is no student to choose; the reasons stand below."
    return f"No trial is complete yet ({states}), so there is no student to choose."


def effort(data: StudyData) -> str:
    """Describe effort: "spent 412 epochs on 57 trials; pruning saved 288 of 700 planned epochs"; empty if untrained.

    With audited trials also: "of 7 trials that were never pruned, to check this, 4 would have been ended, and 1 of
    these came to the front later".

    Spent epochs include those of failed, killed and running trials; planned ones are of finished trials only, and
    epochs that an exhausted budget cut off do not count as saved by pruning.
    """
    trained = data.trials[data.trials["epochs_run"] > 0]
    if trained.empty:
        return ""
    spent = f"spent {many(trained['epochs_spent'].sum(), 'epoch')} on {many(len(trained), 'trial')}"
    finished = trained[trained["state"].isin(["COMPLETE", "PRUNED"])]
    finished = finished[~finished["number"].isin(finished["resumes"])]  # their curves and plans are also another's
    planned = finished[CONFIG + "epochs"].map(number) if CONFIG + "epochs" in finished else pd.Series([math.nan])
    if planned.isna().any() or not finished["saved"].sum() > 0:
        return spent
    saved = f"pruning saved {finished['saved'].sum():,.0f} of {planned.sum():,.0f} planned epochs"
    return "; ".join(filter(None, [spent, saved, _audit(data)]))


def _audit(data: StudyData) -> str:
    """Describe the pruner's mistakes that the never-pruned trials reveal; empty without such trials."""
    finished = data.trials[data.trials["state"] == "COMPLETE"].set_index("number")
    audits = {
        trial.number: trial.user_attrs[Attr.AUDIT]
        for trial in data.stored
        if trial.number in finished.index and isinstance(trial.user_attrs.get(Attr.AUDIT), dict)
    }
    if not audits:
        return ""
    ended = {trial: number(audit.get("would_end")) for trial, audit in audits.items()}
    ended = {trial: step for trial, step in ended.items() if step == step}
    late = [t for t, step in ended.items() if finished["on_front"][t] and finished["best_epoch"][t] > step]
    return (
        f"of {many(len(audits), 'trial')} that were never pruned, to check this, {len(ended)} would have been ended, "
        f"and {len(late)} of these came to the front later"
    )
