"""Write a study's report as one HTML file that works offline."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go

from kdsearch.reporting import choice, confirmation, controls, formatting, runtimes
from kdsearch.reporting.choice import ship
from kdsearch.reporting.collect import CONFIG, StudyData, collect, configuration
from kdsearch.reporting.figures import curves, space_figures
from kdsearch.reporting.figures import front as figures
from kdsearch.reporting.frames import records
from kdsearch.reporting.pages import text
from kdsearch.reporting.pages.assets import Library, packed, parts, templates
from kdsearch.reporting.verdict import details, effort, headline, looks, picks
from kdsearch.system.files import write_text

FILTERS = (
    "percent", "points", "ratio", "interval", "span", "microseconds", "count", "size", "seconds", "setting",
    "configuration",
)  # fmt: skip
"""Names of the functions of `formatting` that the template uses."""


def write(
    data: StudyData,
    path: Path | str,
    *,
    plotlyjs: Library = "inline",
    form: text.Format = "html",
    refresh: int | None = None,
) -> Path:
    """Write the report as one file, atomically; its folder is created where it is missing.

    Args:
        data: a collected study; it may hold no trials.
        path: where the file goes.
        plotlyjs: "inline" puts plotly.js into the page, compressed (2 MB, no network); "cdn" links to it.
        form: "html", "md", "csv" (every trial) or "json".
        refresh: seconds after which a browser reloads the page; None: never.

    Returns:
        The path.

    Raises:
        KdsearchError: the file cannot be written, or `plotlyjs` is neither.
    """
    path = Path(path)
    others = {"md": text.as_markdown, "csv": text.as_csv, "json": text.as_json}
    write_text(path, others[form](data) if form in others else render(data, plotlyjs=plotlyjs, refresh=refresh))
    return path


def write_report(study: optuna.Study, path: Path | str, *, storage: str = "", plotlyjs: Library = "inline") -> Path:
    """Write the report of a study from a script or a notebook, as `kdsearch report` does.

    Args:
        study: of kdsearch's two objectives; it may hold no trials.
        path: where the file goes.
        storage: the storage's URL, for the commands that the page shows; a password in it is masked.
        plotlyjs: see `write`.

    Returns:
        The path.

    Raises:
        KdsearchError: the study has other objectives, or the file cannot be written.
    """
    return write(collect(study, storage_url=storage), path, plotlyjs=plotlyjs)


def render(data: StudyData, *, plotlyjs: Library = "inline", refresh: int | None = None) -> str:
    """Render the page as text.

    Args:
        data: a collected study.
        plotlyjs, refresh: see `write`.

    Raises:
        KdsearchError: `plotlyjs` is neither.
    """
    environment = templates()
    for name in FILTERS:
        environment.filters[name] = getattr(formatting, name)
    environment.tests["present"] = lambda value: not formatting.missing(value)
    return environment.get_template("template.html.j2").render(
        refresh=refresh, **_context(data), **parts(_figures(data), plotlyjs)
    )


def command(data: StudyData, trial: int | None, *options: str) -> str:
    """Return the command that trains a trial again (None: that confirms the front), quoted, the password masked."""
    begin = ["confirm", *options] if trial is None else ["train", "--trial", str(trial)]
    parts = ["kdsearch", *begin, "--name", data.name, "--storage", data.storage]
    folder = data.environment.get("data_dir")
    return shlex.join([*parts, "--data-dir", str(folder)] if folder else parts)


def _figures(data: StudyData) -> dict[str, go.Figure | None]:
    """Return the figures worth drawing, by the name of their place in the page."""
    finished = data.counts["complete"] + data.counts["pruned"]
    points = finished or data.teacher or data.anchors["published_ratio"].notna().any()
    return {
        "front": figures.front(data) if points else None,
        "runtimes": runtimes.figure(data),
        "controls": controls.figure(data),
        "curves": curves.learning_curves(data) if len(data.curves) else None,
        "hypervolume": curves.hypervolume(data) if len(data.history) else None,
        "importances": space_figures.importances(data) if len(data.importances) else None,
        "slices": space_figures.slices(data) if finished else None,
    }


def _context(data: StudyData) -> dict[str, Any]:
    rows = [row | {"config": configuration(row)} for row in records(data.trials)]
    by_number = {row["number"]: row for row in rows}
    front = [by_number[number] for number in data.front["number"]]
    confirmed = {row["trial"]: row for row in records(data.confirmed)}
    states = [f"{count} {state}" for state, count in data.counts.items() if count]
    return {
        "data": data,
        "headline": headline(data),
        "details": details(data),
        "effort": effort(data),
        "counted": f"Trials: {', '.join(states)}" if states else "",
        "picks": picks(data),
        "looks": looks(data, ship(data)) if front else "",
        "speed_word": "fewer operations" if data.cost == "flops" else "as fast as the teacher",
        "commands": {row["number"]: command(data, row["number"]) for row in front},
        "front": front,
        "confirmed": confirmed,
        "timed": bool(data.trials["microseconds"].notna().any()),
        "alone": bool(data.trials["microseconds_1"].notna().any()),
        "timing": choice.timing_sentence(data),
        "latency": data.study_file.get("latency"),
        "order": confirmation.sentence(text.order(data), data.repeats) if front else "",
        "controls": {
            "sentence": controls.sentence(data),
            "note": controls.note(data),
            "columns": controls.COLUMNS,
            "rows": controls.rows(data),
        }
        if data.controls
        else None,
        "control": command(data, None, "--control"),
        "runtimes": runtimes.view(data),
        "confirm": command(data, None),
        "masked": "***" in data.storage,
        "hidden": figures.below(data),
        "anchors": records(data.anchors),
        "published": bool(data.anchors["published_ratio"].notna().any()),
        "recipe": bool(data.anchors["recipe_ratio"].notna().any()),
        "importances": records(data.importances),
        "spent": sorted(data.spent.items(), key=lambda item: -item[1]),
        "csv": packed(text.as_csv(data)) if rows else "",
        "trials": rows,
        "keys": [key.removeprefix(CONFIG) for key in data.trials.columns if key.startswith(CONFIG)],
        "failed": [row for row in rows if row["state"] == "FAIL"],
        "teacher": _teacher(data.teacher or {}),
        "provenance": _provenance(data),
        "definition": formatting.flat(data.definition),
        "study_file": json.dumps(data.study_file, indent=2, default=str) if data.study_file else "",
    }


def _teacher(teacher: Mapping[str, Any]) -> list[tuple[str, str]]:
    said = {
        "test accuracy": formatting.percent(teacher.get("accuracy")),
        "validation accuracy": formatting.percent(teacher.get("validation_accuracy")),
        "weights": formatting.count(teacher.get("parameters")),
        "size": formatting.size(teacher.get("bytes")),
        "training": formatting.seconds(teacher.get("seconds") or math.nan),
    }
    known = {"accuracy", "validation_accuracy", "parameters", "bytes", "seconds"}
    rest = {key: value for key, value in teacher.items() if key not in known and value != ""}
    return [*formatting.flat(rest), *((key, value) for key, value in said.items() if value != formatting.NOTHING)]


def _provenance(data: StudyData) -> list[tuple[str, str]]:
    finished = data.trials["finished"].dropna()
    said = {
        "objectives": data.stand_ins,
        "command": data.command,
        "storage": data.storage,
        "study": data.name,
        "data set": data.dataset,
    }
    if len(finished):
        first, last = (f"{moment(finished):%Y-%m-%d %H:%M}" for moment in (min, max))
        said["trials ended"] = f"{first} to {last}"
    return [*((key, str(value)) for key, value in said.items() if value), *formatting.flat(data.environment)]
