"""A study's page in optuna-dashboard: its figure and its note, each one attribute that is replaced whole.

The dashboard's own `save_plotly_graph_object` and `save_note` cut their text into pieces of 2,045 characters and write
each in a transaction of its own, so a concurrent reader gets a mixture of the old text and the new one. The dashboard
joins any number of pieces of any length, so one piece is valid at every moment.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from optuna import Study
from optuna.storages import BaseStorage

from kdsearch.records import StudyAttr
from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData, collect, configuration, mapping
from kdsearch.reporting.dashboard.figure import front
from kdsearch.reporting.formatting import number, records
from kdsearch.reporting.pages.document import code, escaped, table
from kdsearch.reporting.verdict import verdict

MARK = "Kept by kdsearch; without this line it is yours and stays as it is."
SHOWN = 20  # members of the front in the table
RECENT = 20  # latest finished trials that the estimate of the time left is based on
PAUSE = 10  # factor of the median gap between two trials: longer gaps were pauses
FIGURE = "kdsearch-front"
FIGURE_KEY = f"dashboard:plot_data:{FIGURE}:"
NOTE_KEY = "dashboard:note_str:"
NOTE_VERSION = "dashboard:note_ver"
DEFAULT_TRIALS = 50  # without a limit; the search's own constant is out of reach: reporting does not import search


class Page:
    """Writes a study's figure and note to its storage; a password in the storage's URL is hidden."""

    def __init__(self, storage_url: str) -> None:
        self._url = storage_url

    def __call__(self, study: Study, over: bool) -> None:
        """Write the parts that have changed; `over`: the study's run is."""
        data = collect(study, storage_url=self._url)
        options = {"default_trials": DEFAULT_TRIALS} | mapping(study.user_attrs.get(StudyAttr.OPTIONS))
        now = datetime.datetime.now(datetime.UTC)
        storage, study_id = study._storage, study._study_id
        standing = storage.get_study_system_attrs(study_id)
        _put(storage, study_id, standing, FIGURE_KEY, front(data))
        if _is_ours(standing):
            _put(storage, study_id, standing, NOTE_KEY, note(data, options=options, over=over, now=now))
            # after the text: the dashboard reloads a note when its version changes
            storage.set_study_system_attr(study_id, NOTE_VERSION, int(standing.get(NOTE_VERSION, 0)) + 1)


def _is_ours(attributes: dict[str, Any]) -> bool:
    """Whether a study's note may be replaced: it is missing, or still carries our mark."""
    pieces = {int(key.removeprefix(NOTE_KEY)): value for key, value in attributes.items() if key.startswith(NOTE_KEY)}
    text = "".join(str(pieces[i]) for i in sorted(pieces))
    return not text.strip() or MARK in text


def _put(storage: BaseStorage, study_id: int, standing: dict[str, Any], key: str, text: str) -> None:
    """Write a text as one piece (a column of MySQL holds 65,535 bytes) and empty those that another wrote after it."""
    for name, value in standing.items():
        if name.startswith(key) and name != f"{key}0" and value:
            storage.set_study_system_attr(study_id, name, "")
    if standing.get(f"{key}0") != text:
        storage.set_study_system_attr(study_id, f"{key}0", text)


def note(data: StudyData, *, options: Mapping[str, Any], over: bool, now: datetime.datetime) -> str:
    """Return the note as Markdown: progress, slide rows, the best student so far, the time left.

    Args:
        options: limits of the search: `trials`, `epochs_budget`, `timeout`, each missing or None where not set.
        over: whether the run is over.
        now: the time to show, with a zone.
    """
    parts = [
        f"**{_progress(data, options, over=over)}** As of {now:%Y-%m-%d %H:%M:%S %Z}.",
        _counts(data),
        escaped(verdict(data)) if len(data.front) else "",
        _front(data),
        _anchors(data),
        _about(data),
        f"*{MARK}*",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _progress(data: StudyData, options: Mapping[str, Any], *, over: bool) -> str:
    if over:
        return "The run is over."
    trials, epochs, seconds = (options.get(key) for key in ("trials", "epochs_budget", "timeout"))
    if trials is None and epochs is None and seconds is None:
        trials = options.get("default_trials")
    limits = [f"{trials:,} trials" if trials else "", f"{epochs:,} epochs" if epochs else ""]
    limits += [f"{formatting.seconds(seconds)} at most" if seconds else ""]
    until = " or ".join(filter(None, limits))
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
            f"{row['number']}" + (f" ({escaped(row['anchor'])})" if row["anchor"] else ""),
            formatting.ratio_of(row),
            formatting.percent(row["test_accuracy"]),
            formatting.percent(row["accuracy"]),
            escaped(formatting.configuration(configuration(row))),
        ]
        for row in rows[:SHOWN]
    ]
    columns = ("trial", "ratio", "test", "validation", "configuration")
    more = f"\n\n{len(rows) - SHOWN} more on the front." if len(rows) > SHOWN else ""
    return "### Best so far\n\n" + table(columns, cells, words=["configuration"]) + more


def _anchors(data: StudyData) -> str:
    rows = records(data.anchors)
    if not rows:
        return ""
    published = any(row["published_ratio"] > 0 for row in rows)

    def cells(row: dict[str, Any]) -> list[str]:
        theirs = [formatting.percent(row["published_accuracy"]), formatting.ratio(row["published_ratio"])]
        here = [formatting.percent(row["test_accuracy"]), formatting.ratio(row["ratio"])]
        best = formatting.NOTHING if formatting.missing(row["best_trial"]) else f"{row['best_trial']:.0f}"
        return [escaped(row["anchor"]), *theirs * published, *here, best, formatting.points(row["gain"])]

    columns = ["row", *["published", "its ratio"] * published, "here (test)", "ratio here"]
    columns += ["best trial at least as fast", "gain"]
    return "### The slides\n\n" + table(columns, map(cells, rows))


def _about(data: StudyData) -> str:
    teacher = data.teacher or {}
    said = [
        f"- data set: {escaped(data.dataset)}" if data.dataset else "",
        f"- teacher: {escaped(teacher.get('family', ''))}, "
        f"{formatting.percent(teacher.get('accuracy'))} on the test set, "
        f"{formatting.count(teacher.get('parameters'))} weights" if number(teacher.get("accuracy")) >= 0 else "",
        f"- command: {code(data.command)}" if data.command else "",
        f"- ratio: teacher {'operations' if data.cost == 'flops' else 'time'} / student's",
    ]  # fmt: skip
    return "### The run\n\n" + "\n".join(filter(None, said))
