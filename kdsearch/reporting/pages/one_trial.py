"""One trial of a study: its configuration, its figures, and why it ended."""

from __future__ import annotations

from typing import Any

from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData, configuration, measured, plain
from kdsearch.reporting.frames import records


def facts(data: StudyData, number: int) -> dict[str, Any]:
    """Return what `kdsearch status --trial N --json` prints: strict JSON, accuracies as fractions.

    Args:
        data: a collected study.
        number: of a trial in the study.

    Returns:
        `study`, `trial`, `anchor`, `state`, `on_front`, `params`, `epochs_run`, `epochs` (planned), `best_epoch`,
        `accuracy`, `test_accuracy`, `ratio`, `ratio_low`, `ratio_high`, `sittings`, `microseconds`,
        `microseconds_1`, `reason` (why it ended early or failed, in words) and `why` (what the pruner stored: step, at,
        forecast, trials, reason; else None).
    """
    row = records(data.trials)[number]
    config = configuration(row)
    found = {
        "study": data.name,
        "trial": number,
        "anchor": row["anchor"],
        "state": row["state"].lower(),
        "on_front": row["on_front"],
        "params": config,
        "epochs_run": int(row["epochs_run"]),
        "epochs": config.get("epochs"),
        **measured(row),
        "reason": row["reason"],
        "why": row["why"],
    }
    return {key: plain(value) for key, value in found.items()}


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the facts for people, as (title, text) pairs.

    Args:
        found: what `facts` returned.
    """
    state = found["state"] + (", on the front" if found["on_front"] else "")
    planned = "" if found["epochs"] is None else f" of {formatting.setting(found['epochs'])}"
    accuracy = f"{formatting.percent(found['accuracy'])} validation, {formatting.percent(found['test_accuracy'])} test"
    at = "" if found["best_epoch"] is None else f", at epoch {found['best_epoch']}"
    said = [
        ("trial", f"{found['trial']}" + (f" ({found['anchor']})" if found["anchor"] else "") + f" of {found['study']}"),
        ("state", state),
        ("parameters", formatting.configuration(found["params"])),
        ("epochs", f"{found['epochs_run']}{planned}"),
        ("accuracy", accuracy + at),
        (
            "ratio",
            formatting.interval(found["ratio"], found["ratio_low"], found["ratio_high"]) + formatting.sittings(found),
        ),
        ("time", formatting.times(found)),
        ("why", found["reason"]),
    ]
    return [(title, text) for title, text in said if text]
