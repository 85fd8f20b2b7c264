"""The page of the claims: each with its experiment, its effect, its verdict and its figure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from kdsearch.experiments.claims.arms import CHANGES
from kdsearch.experiments.claims.findings import UNTESTABLE, Effect, Finding, as_json
from kdsearch.experiments.claims.lab import Lab
from kdsearch.experiments.claims.simulation import BAYES, EMPIRICAL, LARGE, MEMORISED, OWN, TWIN
from kdsearch.reporting.figures import style
from kdsearch.reporting.pages import assets, document
from kdsearch.reporting.pages.document import Document, Grid, Mark, Section
from kdsearch.system import machine

MARKS: dict[str, Mark] = {
    "confirmed": "good",
    "refuted": "bad",
    "undecided": "unsure",
    "not measured": "unsure",
    UNTESTABLE: "unsure",
}
COUNTED = ("confirmed", "refuted", "undecided", UNTESTABLE, "not measured")
SHOWN = {5: (EMPIRICAL, BAYES), 6: (LARGE, TWIN, OWN, MEMORISED)}
"""The quantities that the figures of the two lemmas show against N."""
PLACES = {"exact": "exact arithmetic", "cifar10": "CIFAR-10", "mnist": "MNIST", "digits": "digits"}


def result(lab: Lab, findings: Sequence[Finding], command: str) -> dict[str, Any]:
    """Return what `--json` prints and `claims.json` holds."""
    return {
        "dataset": lab.dataset,
        "seeds": lab.seeds,
        "teachers": lab.teachers,
        "changes": list(CHANGES),
        "claims": as_json(findings),
        "command": command,
        "environment": machine.environment(lab.device),
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def write(lab: Lab, findings: Sequence[Finding], folder: Path, *, command: str, plotlyjs: str = "inline") -> Path:
    """Write the page, the Markdown and the JSON, each atomically; return the page's path.

    It is `claims.html`, on MNIST `claims-mnist.html`.

    Args:
        lab: in which the claims were tested.
        findings: of `run.run`.
        folder: created where it is missing.
        command: the command that ran.
        plotlyjs: "inline" or "cdn".

    Raises:
        KdsearchError: a file cannot be written, or `plotlyjs` is neither.
    """
    way = assets.checked(plotlyjs)
    name = "claims" if lab.dataset == "digits" else f"claims-{lab.dataset}"
    found = result(lab, findings, command)
    return document.write(report(lab, findings, command), folder, name, plotlyjs=way, result=found)


def report(lab: Lab, findings: Sequence[Finding], command: str) -> Document:
    """Return the page's text, tables and figures."""
    sections = [Section("Verdicts", _how(lab), grid=_verdicts(findings))]
    sections += [_section(one) for one in findings]
    sections.append(Section("Changes after the first run", list(CHANGES), anchor="changes"))
    return Document(
        f"The slides' claims, tried on {PLACES[lab.dataset]}", counts(findings), _facts(lab, command), sections
    )


def counts(findings: Sequence[Finding]) -> str:
    """Count the verdicts in one sentence; a claim tested on two data sets counts twice."""
    verdicts = [one.verdict for one in findings]
    parts = [f"{verdicts.count(word)} {word}" for word in COUNTED if word in verdicts]
    return f"{len(verdicts)} experiments on {len({one.number for one in findings})} claims: {', '.join(parts)}."


def _how(lab: Lab) -> list[str]:
    return [
        f"Every experiment has a control and a margin fixed beforehand, and {lab.teachers} teachers that each teach "
        f"{lab.seeds} seeds. Arms are paired: with one seed all start from the same weights and draw the order of "
        "their images from the same generator. An effect is confirmed where the whole 95 % interval lies above its "
        "margin, refuted where it lies below, else undecided; the interval is over teachers, seeds and test images "
        "(each as a bootstrap over it has it in the limit, Student's t for few). A verdict also has to hold at 5 % "
        "after Holm's correction over the nine claims. Claims that rest on what the teacher knows are not testable "
        "where it is not shown to be better than a student on labels alone. An effect is called equal where two "
        "one-sided tests show it smaller than its margin either way."
    ]


def _verdicts(findings: Sequence[Finding]) -> Grid:
    rows = [
        [str(one.number), PLACES[one.dataset], one.claim, "; ".join(_deciding(one, ":")) or "-", one.verdict]
        for one in findings
    ]
    return Grid(("claim", "tried on", "the deck says", "effect in points (95 % interval)", "verdict"), rows, MARKS)


def _deciding(one: Finding, colon: str) -> list[str]:
    return [
        f"{effect.name}{colon} {effect.interval.mean:+.2f} ({effect.interval.low:+.2f} to {effect.interval.high:+.2f})"
        for effect in one.effects
        if effect.decides
    ]


def _section(one: Finding) -> Section:
    title = f"Claim {one.number}" if one.dataset == "exact" else f"Claim {one.number} on {PLACES[one.dataset]}"
    adjusted = "" if one.adjusted is None else f"P after Holm's correction: {one.adjusted:.2g}."
    text = [words for words in (one.claim, one.experiment, one.said, adjusted) if words]
    figure, caption = _dots(one), "Each point a seed; a line joins the arms of one seed." if one.arms else ""
    if one.number in SHOWN:
        figure = _curves(one)
        caption = (
            "Points: simulated, with 95 % intervals; lines: the formula (for a teacher fitted on S, as if it were not)."
        )
    note, anchor = f"Verdict: {one.verdict}.", f"claim-{one.number}-{one.dataset}"
    return Section(title, text, figure, caption, _effects(one), note, anchor)


def _effects(one: Finding) -> Grid | None:
    if not one.effects:
        return None
    header = ("effect", "points", "95 % interval", "teachers x seeds", "margin", "decides", "")
    rows = [
        [
            effect.name,
            f"{effect.interval.mean:+.2f}",
            f"{effect.interval.low:+.2f} to {effect.interval.high:+.2f}",
            f"{effect.teachers} x {len(effect.values) // effect.teachers}",
            f"above {effect.margin:+g}",
            "yes" if effect.decides else "no",
            _word(effect),
        ]
        for effect in one.effects
    ]
    return Grid(header, rows, MARKS)


def _word(effect: Effect) -> str:
    """Return a deciding effect's verdict, with a note where a claim of no loss is shown to be equality."""
    equal = ", equal within the margin" if effect.margin < 0 and effect.equivalent else ""
    return f"{effect.verdict}{equal}" if effect.decides else ""


def _dots(one: Finding) -> go.Figure | None:
    """Draw each arm's accuracies, a point a seed; thin lines join pairs."""
    if not one.arms:
        return None
    figure = go.Figure()
    names = list(one.arms)
    for paired in zip(*one.arms.values(), strict=True):
        figure.add_scatter(
            x=names, y=style.rounded(paired), mode="lines", line={"color": style.GREY, "width": 1}, opacity=0.5,
            showlegend=False, hoverinfo="skip",
        )  # fmt: skip
    for index, (name, values) in enumerate(one.arms.items()):
        figure.add_scatter(
            x=[name] * len(values), y=style.rounded(values), mode="markers", name=name, showlegend=False,
            marker={"size": 10, "opacity": 0.8, "color": style.CYCLE[index % len(style.CYCLE)],
                    "symbol": style.SYMBOLS[index % len(style.SYMBOLS)]},
        )  # fmt: skip
    every = [value for values in one.arms.values() for value in values]
    x_axis = {"title": {"text": ""}, "type": "category", "range": [-0.6, len(names) - 0.4]}
    y_axis = {"title": {"text": "test accuracy, %"}, "range": style.padded(min(every), max(every))}
    figure.update_layout(style.layout(x_axis, y_axis, 300))
    return figure


def _curves(one: Finding) -> go.Figure:
    """Draw the simulated quantities of a lemma against N."""
    figure = go.Figure()
    simulated = one.facts["simulated"]
    for index, quantity in enumerate(SHOWN[one.number]):
        rows = [row for row in simulated if row["quantity"] == quantity]
        sizes = [row["size"] for row in rows]
        colour = style.CYCLE[index % len(style.CYCLE)]
        figure.add_scatter(
            x=sizes, y=[row["estimate"] for row in rows], mode="markers", name=quantity,
            marker={"color": colour, "size": 9, "symbol": style.SYMBOLS[index]},
            error_y={
                "type": "data", "symmetric": False, "color": colour,
                "array": [row["high"] - row["estimate"] for row in rows],
                "arrayminus": [row["estimate"] - row["low"] for row in rows],
            },
        )  # fmt: skip
        figure.add_scatter(
            x=sizes, y=[row["expected"] for row in rows], mode="lines", name=quantity, showlegend=False,
            line={"color": colour, "width": 1.5}, hoverinfo="skip",
        )  # fmt: skip
    x_axis = {"title": {"text": "N, examples"}, "type": "log", "tickvals": sorted({row["size"] for row in simulated})}
    what = "variance" if one.number == 5 else "squared error"
    figure.update_layout(style.layout(x_axis, {"title": {"text": what}, "type": "log"}, 400, rows=2))
    return figure


def _facts(lab: Lab, command: str) -> list[str]:
    facts = [
        f"Made by `{command}` on {time.strftime('%Y-%m-%d', time.gmtime())}.",
        document.versions(machine.environment(lab.device)),
        f"Students: one hidden layer, Adam, {lab.settings.epochs} epochs, batch {lab.settings.batch_size}; scored on "
        f"the {len(lab.split.test):,} test images after the last epoch.",
    ]
    if lab.any_trained:
        teacher = lab.teacher_of().facts
        told = f"Teacher: {teacher.family}, fingerprint {teacher.fingerprint}"
        facts.append(f"{told}, test accuracy {100 * teacher.accuracy:.2f} %.")
    return facts


def text(findings: Sequence[Finding]) -> str:
    """Return a line a claim, for a terminal."""
    return "\n".join(
        f"claim {one.number} {one.dataset:<8} {one.verdict:<13} {', '.join(_deciding(one, ''))}".rstrip()
        for one in findings
    )
