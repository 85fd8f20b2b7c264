"""A study's report as Markdown, CSV and JSON."""

from __future__ import annotations

import json
from typing import Any, Literal, cast, get_args

from kdsearch.errors import KdsearchError
from kdsearch.reporting import choice, confirmation, controls, formatting, runtimes
from kdsearch.reporting.choice import Shipping, ship
from kdsearch.reporting.collect import CONFIG, StudyData, configuration, plain, result
from kdsearch.reporting.frames import records
from kdsearch.reporting.pages.markdown import code, facts, table
from kdsearch.reporting.pages.markdown import plain as escaped
from kdsearch.reporting.verdict import effort, looks, picks, verdict

Format = Literal["html", "md", "csv", "json"]
HIDDEN = ("why", "saved", "against_teacher")  # columns that repeat `reason`, or serve other figures


def checked(form: str) -> Format:
    """Return a valid report format, or raise.

    Raises:
        KdsearchError: `form` is none of html, md, csv, json.
    """
    if form not in get_args(Format):
        raise KdsearchError("--format must be html, md, csv or json", got=form, remedy="choose one of the four")
    return cast(Format, form)


def as_csv(data: StudyData) -> str:
    """Return a row per trial: accuracies as fractions, six digits, the configuration in columns `config.KEY`."""
    frame = data.trials.drop(columns=list(HIDDEN))
    for key in frame.columns:
        if key.startswith(CONFIG):
            frame[key] = frame[key].map(lambda value: json.dumps(value) if isinstance(value, list) else value)
    return str(frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def as_json(data: StudyData) -> str:
    """Return what `--json` prints, with the verdict, the slides' rows, the confirmation and the provenance."""
    found = result(data, report=None) | {
        "verdict": verdict(data),
        "ship": _shipping(ship(data)) if not data.front.empty else None,
        "picks": {pick.title: pick.row["number"] for pick in picks(data)},
        "slides": records(data.anchors),
        "confirmed": records(data.confirmed),
        "order": confirmation.sentence(order(data), data.repeats),
        "control": controls.result(data) if data.controls else None,
        "timing": choice.timing_sentence(data),
        "ties": {str(number): other for number, other in choice.ties(records(data.front)).items()},
        "runtimes": runtimes.result(data),
        "importances": records(data.importances),
        "seconds": data.spent,
        "command": data.command,
        "environment": data.environment,
        "definition": data.definition,
    }
    return json.dumps(plain(found), indent=1, allow_nan=False) + "\n"


def order(data: StudyData) -> confirmation.Order:
    """Return the front's order after its confirmation."""
    return confirmation.order(data.front.rename(columns={"number": "trial"}), data.confirmed)


def as_markdown(data: StudyData) -> str:
    """Return the report's text and tables."""
    blocks = [f"# Study {escaped(data.name)}", f"**{escaped(verdict(data))}**"]
    if data.stand_ins:
        blocks.append(f"This is {escaped(data.stand_ins)}.")
    if effort(data):
        blocks.append(f"The study {effort(data)}.")
    if not data.front.empty:
        blocks += [
            "## Picks",
            _picks(data),
            escaped(looks(data, ship(data))),
            "## The front",
            _front(data),
            escaped(choice.timing_sentence(data)),
            escaped(confirmation.sentence(order(data), data.repeats)),
        ]
    if not data.confirmed.empty:
        blocks += ["## Confirmed with new seeds, on the whole training set", _confirmed(data)]
    if data.controls:
        cells = [tuple(map(escaped, row)) for row in controls.rows(data)]
        blocks += ["## Was the teacher worth it?", escaped(controls.sentence(data)), controls.note(data),
                   table(controls.COLUMNS, cells)]  # fmt: skip
    told = runtimes.view(data)
    if told:
        blocks += ["## Runtimes", escaped(told["sentence"]), _runtimes(told), facts(told["what"])]
    if not data.anchors.empty:
        blocks += ["## The slides’ configurations", _slides(data)]
    if not data.importances.empty:
        rows = [(escaped(row["parameter"]), formatting.percent(row["accuracy"], 0), formatting.percent(row["ratio"], 0))
                for row in records(data.importances)]  # fmt: skip
        blocks += ["## What mattered", table(("parameter", "for accuracy", "for the ratio"), rows)]
    said = [("command", data.command), ("storage", data.storage), *formatting.flat(data.environment)]
    blocks += ["## Where this comes from", facts(said)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _shipping(found: Shipping) -> dict[str, Any]:
    """Return the student to ship for JSON; None for the trial where none qualifies."""
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


def _picks(data: StudyData) -> str:
    return "\n".join(
        f"- {pick.title}: trial {pick.row['number']} ({pick.why}), {escaped(formatting.configuration(pick.config))}"
        for pick in picks(data)
    )


def _front(data: StudyData) -> str:
    named = {"microseconds": "µs an image", "microseconds_1": "µs, one alone"}
    timed = {name: title for name, title in named.items() if data.front[name].notna().any()}

    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        ratio = formatting.interval(row["ratio"], row["ratio_low"], row["ratio_high"])
        times = [formatting.microseconds(row[name]) for name in timed]
        accuracies = (formatting.percent(row[name]) for name in ("test_accuracy", "accuracy"))
        name = f"{row['number']}" + (f" ({escaped(row['anchor'])})" if row["anchor"] else "")
        return (
            name,
            *accuracies,
            ratio,
            *times,
            formatting.count(row["parameters"]),
            code(formatting.configuration(configuration(row))),
        )

    columns = ("trial", "test", "validation", "ratio", *timed.values(), "weights", "parameters of the search")
    return table(columns, map(cells, records(data.front)), words=("parameters of the search",))


def _confirmed(data: StudyData) -> str:
    rows = [
        (f"{row['trial']:.0f}", f"{row['repeats']:.0f}",
         formatting.span(row["test_accuracy"], row["test_low"], row["test_high"]),
         formatting.interval(row["ratio"], row["ratio_low"], row["ratio_high"]))
        for row in records(data.confirmed)
    ]  # fmt: skip
    return table(("trial", "seeds", "test (95 %)", "ratio (95 %)"), rows)


def _runtimes(told: dict[str, Any]) -> str:
    rows = [
        (f"{row['number']}" + ("" if row["on_front"] else " (not on the front)"),
         formatting.percent(row["test_accuracy"]),
         *row["cells"])
        for row in told["rows"]
    ]  # fmt: skip
    return table(("trial", "test", *map(escaped, told["titles"])), rows)


def _slides(data: StudyData) -> str:
    def pair(row: dict[str, Any], prefix: str) -> tuple[str, str]:
        accuracy = row["published_accuracy"] if prefix == "published_" else row[f"{prefix}test_accuracy"]
        return formatting.percent(accuracy), formatting.ratio(row[f"{prefix}ratio"])

    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        itself = not formatting.missing(row["best_trial"]) and row["best_trial"] == row["trial"]
        best = "itself" if itself else formatting.count(row["best_trial"])
        gain = formatting.NOTHING if itself else formatting.points(row["gain"])
        kinds = (pair(row, prefix) for prefix in ("published_", "recipe_", ""))
        return (escaped(row["anchor"]), *(cell for kind in kinds for cell in kind), best, *pair(row, "best_"), gain)

    kinds = ("published", "by its recipe", "here")
    columns = [name for kind in kinds for name in (f"{kind}: test", f"{kind}: ratio")]
    return table(
        ("row", *columns, "best at least as fast: trial", "test", "ratio", "gain"), map(cells, records(data.anchors))
    )
