"""`kdsearch measure`: the front's ratios in other runtimes, on this machine and on the real device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdsearch.cli.options import DataDir, Json, Name, Storage
from kdsearch.cli.output import find_study
from kdsearch.errors import KdsearchError, shown
from kdsearch.storage import DEFAULT_STORAGE

if TYPE_CHECKING:
    from optuna import Study
    from rich.table import Table


def measure(
    trial: Annotated[int | None, typer.Option(min=0, help="Write this trial's folder for a device to --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to carry to the device.")] = None,
    imports: Annotated[
        list[Path] | None,
        typer.Option("--import", help="Store what measure.py wrote there; may be given several times."),
    ] = None,
    trials: Annotated[
        str | None, typer.Option(help="Numbers with commas between, to time here [default: the whole front].")
    ] = None,
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Time the front in torch and ONNX Runtime here; or make a folder for a device, and import what was timed there."""
    check(trial, out, imports, trials)
    study = find_study(storage, name)
    if imports:
        _import(study, imports, as_json=as_json)
    elif trial is not None and out is not None:
        _carry(study, trial, out, storage, data_dir, as_json=as_json)
    else:
        _here(study, trials, storage, data_dir, as_json=as_json)


def check(trial: int | None, out: Path | None, imports: list[Path] | None, trials: str | None) -> None:
    """Refuses options that contradict each other.

    Raises:
        KdsearchError: they do.
    """
    if imports and (trial is not None or out is not None):
        raise KdsearchError(
            "--import goes with neither --trial nor --out",
            remedy="give --trial and --out to make a folder, then --import for what came back",
        )
    if trials is not None and (imports or trial is not None or out is not None):
        raise KdsearchError("--trials goes with neither --trial nor --import", remedy="give it alone, to measure here")
    if (trial is None) != (out is None):
        raise KdsearchError(
            "--trial and --out go together",
            got="--trial alone" if out is None else "--out alone",
            remedy="give both to make a folder for a device, or none to measure here",
        )


def _here(study: Study, trials: str | None, storage: str, data_dir: str | None, *, as_json: bool) -> None:
    from kdsearch.cli.progress import ConsoleProgress
    from kdsearch.export import front_timing
    from kdsearch.reporting.collect import collect

    with ConsoleProgress() as progress:
        measured = front_timing.measure(study, trials, data_dir=data_dir, progress=progress)
    found = front_timing.result(collect(study, storage_url=storage), measured)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(_table(found))
    print(shown(found["sentence"]))


def _table(found: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from kdsearch.reporting.formatting import interval, percent

    table = Table(title=escape(shown(f"{found['study']}: ratios on {found['device']}")))
    for column in ("trial", "test", *found["columns"]):
        table.add_column(escape(shown(column)), justify="right")
    for row in found["trials"]:
        cells = [interval(*cell.values()) if (cell := row["ratios"].get(name)) else "" for name in found["columns"]]
        table.add_row(str(row["trial"]), percent(row["test_accuracy"]), *cells)
    return table


def _carry(study: Study, trial: int, out: Path, storage: str, data_dir: str | None, *, as_json: bool) -> None:
    from kdsearch.cli.progress import ConsoleProgress
    from kdsearch.export import device_folder
    from kdsearch.reporting.formatting import size

    with ConsoleProgress() as progress:
        found = device_folder.write(study, trial, out=out, url=storage, data_dir=data_dir, progress=progress)
    if as_json:
        print(json.dumps(found))
        return
    print(f"{shown(str(out))}: trial {trial} and its teacher, {size(found['bytes'])}")
    print("carry it to the device and run there: python measure.py --out device.json")
    print("then here: kdsearch measure --import device.json")


def _import(study: Study, paths: list[Path], *, as_json: bool) -> None:
    from kdsearch.export import device_results
    from kdsearch.reporting import formatting

    found = device_results.take(study, paths)
    if as_json:
        print(json.dumps({"study": study.study_name, "imported": found}))
        return
    for each in found:
        ratio = formatting.interval(each["ratio"], each["low"], each["high"])
        there = formatting.ratio(each["search_ratio"])
        new = "" if each["new"] else "; the study held it already"
        print(shown(f"trial {each['trial']} on {each['device']}: ratio {ratio}, {there} in the search{new}"))
