"""`kdsearch confirm`: the front's students trained again, and what of the front stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdsearch.cli.options import DataDir, Device, Json, Name, Precision, Storage
from kdsearch.cli.output import command_line, find_study, write_report
from kdsearch.cli.worker import ending
from kdsearch.errors import shown
from kdsearch.storage import DEFAULT_STORAGE

if TYPE_CHECKING:
    from rich.table import Table


def confirm(
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    repeats: Annotated[
        int | None,
        typer.Option(help="Trainings of each student, each with a new seed [default: 5, or as begun]."),
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Train each without the teacher, too: what distillation gains.")
    ] = False,
    trials: Annotated[
        str | None,
        typer.Option(help="Numbers with commas between, as 3,7,9 [default: the front and all within noise of it]."),
    ] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    precision: Precision = "auto",
    report: Annotated[Path | None, typer.Option(help="Write the study's HTML report there, too.")] = None,
    as_json: Json = False,
) -> None:
    """Train the front's students on the whole training set with new seeds: test accuracy and ratio with intervals."""
    from kdsearch import storage as storages
    from kdsearch.cli.progress import ConsoleProgress
    from kdsearch.reporting import confirmation, controls
    from kdsearch.reporting.collect import collect
    from kdsearch.reporting.verdict import verdict
    from kdsearch.search import confirm as confirming
    from kdsearch.storage import retrying

    title = find_study(storage, name).study_name
    with ConsoleProgress() as progress, ending(progress, "finished runs"):
        backend = retrying.patient(storages.open_storage(storage), progress.warning)
        study = storages.load_study(backend, title)
        try:
            chosen = confirming.choose(study, trials, band=True)
            confirming.confirm(
                study, chosen, repeats=repeats, control=control, data_dir=data_dir, device=device, precision=precision,
                command=command_line(storage), progress=progress,
            )  # fmt: skip
        finally:
            storages.fold(backend)
        data = collect(study, storage_url=storage)
        if report is not None:
            _, path = write_report(study, storage, report)
            progress.line(f"report: {path}")
        rows = data.trials.rename(columns={"number": "trial"})
        found = confirmation.result(study.study_name, rows, confirmation.confirmations(study.user_attrs), data.repeats)
        progress.console.print(_table(found))
        progress.line(found["sentence"])
        found |= {"control": controls.result(data), "verdict": verdict(data)}
        if data.controls:
            progress.line(found["control"]["sentence"])
        progress.line(found["verdict"])
    if as_json:
        print(json.dumps(found, allow_nan=False))


def _table(found: dict[str, Any]) -> Table:
    """Search and confirmation side by side, a row a confirmed trial."""
    from rich.markup import escape
    from rich.table import Table

    from kdsearch.reporting.formatting import interval, percent, points, ratio

    table = Table(title=f"confirmed of {escape(shown(found['study']))} (test accuracy and ratio, mean of the repeats)")
    columns = ("trial", "repeats", "epochs", "search test", "test", "95 % interval", "points", "search ratio", "ratio")
    for column in (*columns, "on the front"):
        table.add_column(column, justify="right")
    behind = {pair["trial"]: pair for pair in reversed(found["behind"])}
    for row in found["trials"]:
        low, high = row["test_low"], row["test_high"]
        pair = behind.get(row["trial"])
        kept = "" if not row["on_front"] else "stays" if pair is None else f"behind {pair['by']}"
        table.add_row(
            *(str(row[name]) for name in ("trial", "repeats", "epochs")),
            percent(row["search_test_accuracy"]),
            percent(row["test_accuracy"]),
            "none of one seed" if low is None else f"{percent(low)} to {percent(high)}",
            points(row["test_difference"]),
            ratio(row["search_ratio"]),
            interval(row["ratio"], row["ratio_low"], row["ratio_high"]),
            kept + (", clear" if pair and pair["clear"] else ""),
        )
    return table
