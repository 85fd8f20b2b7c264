"""The note on a study's page in optuna-dashboard: progress, slide rows, the best student so far, the time left."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData, configuration
from kdsearch.reporting.formatting import number, records
from kdsearch.reporting.pages.markdown import code, plain, table
from kdsearch.reporting.verdict import verdict

MARK = "Kept by kdsearch; without this line it is yours and stays as it is."
SHOWN = 20  # members of the front in the table
RECENT = 20  # latest finished trials that the estimate of the time left is based on
PAUSE = 10  # factor of the median gap between two trials: longer gaps were pauses


def note(data: StudyData, *, options: Mapping[str, Any], over: bool, now: datetime.datetime) -> str:
    """Return the note as Markdown.

    Args:
        data: a collected study.
        options: limits of the search: `trials`, `epochs_budget`, `timeout`, each missing or None where not set.
        over: whether the run is over.
        now: the time to show, with a zone.
    """
    parts = [
        f"**{_progress(data, options, over=over)}** As of {now:%Y-%m-%d %H:%M:%S %Z}.",
        _counts(data),
        plain(verdict(data)) if len(data.front) else "",
        _front(data),
        _anchors(data),
        _about(data),
        f"*{MARK}*",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _progress(data: StudyData, options: Mapping[str, Any], *, over: bool) -> str:
    trials, epochs, seconds = (options.get(key) for key in ("trials", "epochs_budget", "timeout"))
    if trials is None and epochs is None and seconds is None:
        trials = options.get("default_trials")
    limits = [f"{trials:,} trials" if trials else "", f"{epochs:,} epochs" if epochs else ""]
    limits += [f"{formatting.seconds(seconds)} at most" if seconds else ""]
    until = " or ".join(limit for limit in limits if limit)
    if over:
        return "The run is over."
    left = [each for each in (_left(data, "trials", trials), _left(data, "epochs", epochs)) if each is not None]
    about = f"; about {formatting.seconds(min(left))} left" if left else ""
    return f"Runs until {until}{about}." if until else "Runs."


def _left(data: StudyData, unit: str, total: int | None) -> float | None:
    """Estimate the seconds until a limit is reached at the pace of the last trials; None where it cannot be yet."""
    ended = data.trials[data.trials["finished"].notna() & (data.trials["epochs_run"] > 0)].sort_values("finished")
    done = len(ended[ended["state"] != "FAIL"]) if unit == "trials" else float(data.trials["epochs_spent"].sum())
    last = ended.tail(RECENT + 1)
    if not total or len(last) < 3:
        return None
    gaps = last["finished"].diff().dt.total_seconds().dropna()
    seconds = float(gaps.clip(upper=PAUSE * gaps.median()).sum())
    amount = len(gaps) if unit == "trials" else float(last["epochs_spent"].iloc[1:].sum())
    return max(0.0, total - done) * seconds / amount if amount else None


def _counts(data: StudyData) -> str:
    named = ("complete", "pruned", "untrained", "failed", "running", "waiting")
    states = ", ".join(f"{data.counts[state]} {state}" for state in named if data.counts.get(state))
    epochs = f"; {data.trials['epochs_spent'].sum():,.0f} epochs" if len(data.trials) else ""
    volume = f"; hypervolume {data.hypervolume:.4f}" if data.hypervolume else ""
    return f"Trials: {states}{epochs}{volume}." if states else "No trial has begun yet."


def _front(data: StudyData) -> str:
    rows = records(data.front)
    if not rows:
        return "No trial is complete yet."
    cells = [
        [
            f"{row['number']}" + (f" ({plain(row['anchor'])})" if row["anchor"] else ""),
            formatting.interval(row["ratio"], row["ratio_low"], row["ratio_high"]),
            formatting.percent(row["test_accuracy"]),
            formatting.percent(row["accuracy"]),
            plain(formatting.configuration(configuration(row))),
        ]
        for row in rows[:SHOWN]
    ]
    more = f"\n\n{len(rows) - SHOWN} more on the front." if len(rows) > SHOWN else ""
    return "### Best so far\n\n" + _titled(cells) + more


def _titled(cells: list[list[str]]) -> str:
    return table(("trial", "ratio", "test", "validation", "configuration"), cells, words=["configuration"])


def _anchors(data: StudyData) -> str:
    rows = records(data.anchors)
    published = any(row["published_ratio"] > 0 for row in rows)
    cells = [
        [
            plain(row["anchor"]),
            *(
                [formatting.percent(row["published_accuracy"]), formatting.ratio(row["published_ratio"])]
                if published
                else []
            ),
            formatting.percent(row["test_accuracy"]),
            formatting.ratio(row["ratio"]),
            formatting.NOTHING if formatting.missing(row["best_trial"]) else f"{row['best_trial']:.0f}",
            formatting.points(row["gain"]),
        ]
        for row in rows
    ]
    columns = ["row", *(["published", "its ratio"] if published else []), "here (test)", "ratio here"]
    columns += ["best trial at least as fast", "gain"]
    return "### The slides\n\n" + table(columns, cells) if cells else ""


def _about(data: StudyData) -> str:
    teacher = data.teacher or {}
    said = [
        f"- data set: {plain(data.dataset)}" if data.dataset else "",
        f"- teacher: {plain(teacher.get('family', ''))}, "
        f"{formatting.percent(teacher.get('accuracy'))} on the test set, "
        f"{formatting.count(teacher.get('parameters'))} weights" if number(teacher.get("accuracy")) >= 0 else "",
        f"- command: {code(data.command)}" if data.command else "",
        f"- ratio: teacher {'operations' if data.cost == 'flops' else 'time'} / student's",
    ]  # fmt: skip
    return "### The run\n\n" + "\n".join(line for line in said if line)
