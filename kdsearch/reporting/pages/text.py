"""A study's report as CSV and JSON."""

from __future__ import annotations

import json
from typing import Any, Literal, cast, get_args

from kdsearch.errors import KdsearchError
from kdsearch.reporting import choice, confirmation, controls, runtimes
from kdsearch.reporting.choice import Shipping, ship
from kdsearch.reporting.collect import CONFIG, StudyData, result
from kdsearch.reporting.figures.space_figures import importances
from kdsearch.reporting.formatting import plain, records
from kdsearch.reporting.verdict import picks, verdict

Format = Literal["html", "md", "csv", "json"]
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet's formula may begin
HIDDEN = ("why", "saved", "against_teacher")  # columns that repeat `reason`, or serve other figures


def checked(form: str) -> Format:
    """Return a report's format.

    Raises:
        KdsearchError: `form` is none of html, md, csv, json.
    """
    if form not in get_args(Format):
        raise KdsearchError("--format must be html, md, csv or json", got=form, remedy="choose one of the four")
    return cast(Format, form)


def as_csv(data: StudyData) -> str:
    """Return a row per trial: accuracies as fractions, six digits, the configuration in columns `config.KEY`.

    An apostrophe stands before text that a spreadsheet would take for a formula: anyone may write to a storage.
    """
    frame = data.trials.drop(columns=list(HIDDEN))
    for key in frame.columns:
        if key.startswith(CONFIG):
            frame[key] = frame[key].map(lambda value: json.dumps(value) if isinstance(value, list) else value)
    frame = frame.map(lambda value: f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value)
    return str(frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def as_json(data: StudyData) -> str:
    """Return what `--json` prints, with the verdict, the slides' rows, the confirmation and the provenance."""
    found = result(data, report=None) | {
        "verdict": verdict(data),
        "ship": _shipping(ship(data)) if not data.front.empty else None,
        "picks": {pick.title: pick.row["number"] for pick in picks(data)},
        "slides": records(data.anchors),
        "confirmed": records(data.confirmed),
        "order": order(data),
        "control": controls.result(data) if data.controls else None,
        "timing": choice.timing_sentence(data),
        "ties": {str(number): other for number, other in choice.ties(records(data.front)).items()},
        "runtimes": runtimes.result(data),
        "importances": records(importances(data.stored)),
        "seconds": data.spent,
        "command": data.command,
        "environment": data.environment,
        "definition": data.definition,
    }
    return json.dumps(plain(found), indent=1, allow_nan=False) + "\n"


def order(data: StudyData) -> str:
    """Say in a sentence whether the front's order survives its confirmation."""
    found = confirmation.order(data.front.rename(columns={"number": "trial"}), data.confirmed)
    return confirmation.sentence(found, data.repeats)


def _shipping(found: Shipping) -> dict[str, Any]:
    of = found.chosen or found.nearest
    known = {} if of is None else {"below": of.below, "bound": of.bound, "paired": of.paired, "seeds": of.seeds}
    return {
        "within": found.within,
        "trial": found.chosen and found.chosen.row["number"],
        "nearest": found.nearest and found.nearest.row["number"],
        "candidates": found.candidates,
        "looks": found.looks,
        **known,
    }
