"""One trial of a study: its configuration and figures, why it ended, and the model card of its student."""

from __future__ import annotations

import shlex
from typing import Any

from kdsearch.errors import StorageError
from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData, configuration, mapping, measured
from kdsearch.reporting.formatting import by, plain, records
from kdsearch.reporting.pages import document
from kdsearch.reporting.verdict import worth

UNCONFIRMED = "One seed, not confirmed: the front of a search holds lucky members."
LEFT_OUT = {"data_dir", "workers", "classes"}  # of the environment in a card


def facts(data: StudyData, number: int) -> dict[str, Any]:
    """Return what `kdsearch status --trial N --json` prints: strict JSON, accuracies as fractions.

    Returns:
        Among others `epochs` (planned), what `collect.measured` returns, `reason` (why it ended early or failed, in
        words) and `why` (what the pruner stored: step, at, forecast, trials, reason; else None).
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
    """Return what `facts` returned for people, as (title, text) pairs."""
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
        ("ratio", formatting.ratio_of(found) + formatting.sittings(found)),
        ("time", formatting.times(found)),
        ("why", found["reason"]),
    ]
    return [(title, text) for title, text in said if text]


def card(data: StudyData, number: int) -> str:
    """Return a trial's model card.

    Raises:
        StorageError: the study holds no such trial, or it has no accuracy.
    """
    row = by(data.trials, "number").get(number)
    if row is None or formatting.missing(row["accuracy"]):
        raise StorageError(
            "a model card needs a trial that was trained", got=f"trial {number}", remedy="see `kdsearch status`"
        )
    told = worth(data, row)
    config = {key: formatting.setting(value) for key, value in configuration(row).items()}
    of_data = [("data set", data.dataset), *formatting.flat(mapping(data.definition.get("data")))]
    made = [(key, value) for key, value in formatting.flat(data.environment) if key not in LEFT_OUT]
    parts = [
        f"# Trial {number} of study {document.escaped(data.name)}",
        told[0].upper() + told[1:],
        _confirmed(data, number),
        "## Figures", document.facts(_figures(data, row)),
        "## Configuration", document.facts(config.items()),
        "## Data", document.facts(of_data),
        "## Teacher", document.facts(_teacher(data.teacher or {})),
        "## Train it again", document.block(command(data, number)),
        "The storage's password is hidden: put it in place of `***`." if "***" in data.storage else "",
        "## Made with", document.facts(made),
    ]  # fmt: skip
    return "\n\n".join(filter(None, parts)) + "\n"


def command(data: StudyData, trial: int | None, *options: str) -> str:
    """Return the command that trains a trial again (None: that confirms the front), quoted, the password masked."""
    begin = ["confirm", *options] if trial is None else ["train", "--trial", str(trial)]
    parts = ["kdsearch", *begin, "--name", data.name, "--storage", data.storage]
    folder = data.environment.get("data_dir")
    return shlex.join([*parts, "--data-dir", str(folder)] if folder else parts)


def _confirmed(data: StudyData, number: int) -> str:
    row = by(data.confirmed, "trial").get(number)
    if row is None:
        return f"**{UNCONFIRMED}**"
    times = "once" if row["repeats"] == 1 else f"{row['repeats']:.0f} times"
    said = {
        "trained again with other seeds on the whole training set": times,
        "mean test accuracy": formatting.span(row["test_accuracy"], row["test_low"], row["test_high"]),
        "mean ratio": formatting.ratio_of(row),
    }
    return "**Confirmed.** " + "; ".join(f"{key}: {value}" for key, value in said.items())


def _figures(data: StudyData, row: dict[str, Any]) -> list[tuple[str, object]]:
    what = "counted operations" if data.cost == "flops" else "measured time, 95 % interval in brackets"
    return [
        ("test accuracy", formatting.percent(row["test_accuracy"])),
        ("validation accuracy", formatting.percent(row["accuracy"])),
        ("inference ratio", f"{formatting.ratio_of(row)} ({what}{formatting.sittings(row)})"),
        ("time of the student", formatting.times(row)),
        ("at epoch", f"{formatting.count(row['best_epoch'])} of {formatting.count(row['epochs_run'])} trained"),
        ("weights", formatting.count(row["parameters"])),
        ("size", formatting.size(row["bytes"])),
        ("training", formatting.seconds(row["train_seconds"])),
        ("slide row", row["anchor"]),
    ]


def _teacher(teacher: dict[str, Any]) -> list[tuple[str, object]]:
    return [
        ("family", teacher.get("family")),
        ("test accuracy", formatting.percent(teacher.get("accuracy"))),
        ("weights", formatting.count(teacher.get("parameters"))),
        ("size", formatting.size(teacher.get("bytes"))),
        ("fingerprint", teacher.get("fingerprint")),
    ]
