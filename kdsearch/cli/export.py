"""The commands for the winner: `kdsearch pick`, `export` and `measure`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdsearch.cli.options import DataDir, Json, Name, Storage, lazy_imports, takes
from kdsearch.cli.output import find_study
from kdsearch.cli.progress import ConsoleProgress
from kdsearch.errors import KdsearchError, shown
from kdsearch.export.pick import Wish
from kdsearch.storage import DEFAULT_STORAGE

with lazy_imports():
    from kdsearch.export import device_folder, formats, front_timing, ship
    from kdsearch.export import pick as picking
    from kdsearch.reporting import collect, formatting
    from kdsearch.search import plan as plans

if TYPE_CHECKING:
    from optuna import Study


@takes(Wish)
def pick(wish: Wish, name: Name = None, storage: Storage = DEFAULT_STORAGE, as_json: Json = False) -> None:
    """Name the trial to ship, and why: by itself, the fastest that is shown to be near the teacher."""
    wish.check()
    data = collect.collect(find_study(storage, name), storage_url=storage)
    choice = picking.choose(data, wish)
    if as_json:
        print(json.dumps(picking.result(data, choice), allow_nan=False))
    else:
        print(shown(choice.why + (f" ({data.stand_ins})" if data.stand_ins else "")))


@takes(Wish)
def export(
    wish: Wish,
    out: Annotated[Path, typer.Option(help="Folder of the file.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Number of the trial; or say what it must reach.")] = None,
    kind: Annotated[str, typer.Option("--format", help="onnx, pt2 or safetensors.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="ONNX in integers, calibrated on training images.")] = False,
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write a trial's student as one file, verified and timed in its own runtime, with a model card beside it."""
    plans.check_choice("--format", kind, formats.FORMATS)
    if int8 and kind != "onnx":
        raise KdsearchError("--int8 is for ONNX", got=f"--format {kind}", remedy="leave one of them out")
    kind = formats.INT8 if int8 else kind
    given = [key for key, value in vars(wish).items() if value != getattr(Wish(), key)]
    if trial is not None and given:
        named = ", ".join("--" + key.replace("_", "-") for key in given)
        raise KdsearchError(
            "--trial names the student, so requirements have no part in it",
            got=f"--trial {trial} with {named}",
            remedy="leave out one of them",
        )
    study = find_study(storage, name)
    if trial is None:
        trial = picking.choose(collect.collect(study, storage_url=storage), wish).number
    with ConsoleProgress() as progress:
        found = ship.export(study, trial, kind=kind, out=out, url=storage, data_dir=data_dir, progress=progress)
    if as_json:
        print(json.dumps(found))
        return
    there = (
        f"not timed: {shown(found[formats.UNTIMED])}; ratio"
        if found["ratio"] is None
        else f"ratio there {found['ratio']:.4g} ({found['low']:.4g} to {found['high']:.4g}),"
    )
    print(
        f"{shown(found['file'])}: {found['test_accuracy']:.2%} test accuracy in {found['runtime']}, {there} "
        f"in the search {found['search_ratio']:.4g}"
    )


def measure(
    trial: Annotated[int | None, typer.Option(min=0, help="Write this trial's folder for a device to --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to carry to the device.")] = None,
    imports: Annotated[
        list[Path] | None,
        typer.Option("--import", help="Store what measure.py wrote there; may be given several times."),
    ] = None,
    trials: Annotated[
        str | None, typer.Option(help="Numbers with commas between, to time here (default: the whole front).")
    ] = None,
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Time the front in torch and ONNX Runtime here; or make a folder for a device, and import its timings."""
    check(trial, out, imports, trials)
    study = find_study(storage, name)
    if imports:
        _import(study, imports, as_json=as_json)
    elif trial is not None and out is not None:
        _carry(study, trial, out, storage, data_dir, as_json=as_json)
    else:
        _here(study, trials, storage, data_dir, as_json=as_json)


def check(trial: int | None, out: Path | None, imports: list[Path] | None, trials: str | None) -> None:
    """Refuses options that contradict each other."""
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
    with ConsoleProgress() as progress:
        measured = front_timing.measure(study, trials, data_dir=data_dir, progress=progress)
    found = front_timing.result(collect.collect(study, storage_url=storage), measured)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    Console(width=None if sys.stdout.isatty() else 200).print(_table(found))
    print(shown(found["sentence"]))


def _table(found: dict[str, Any]) -> Table:
    table = Table(title=escape(shown(f"{found['study']}: ratios on {found['device']}")))
    for column in ("trial", "test", *found["columns"]):
        table.add_column(escape(shown(column)), justify="right")
    for row in found["trials"]:
        cells = [
            formatting.interval(*cell.values()) if (cell := row["ratios"].get(name)) else ""
            for name in found["columns"]
        ]
        table.add_row(str(row["trial"]), formatting.percent(row["test_accuracy"]), *cells)
    return table


def _carry(study: Study, trial: int, out: Path, storage: str, data_dir: str | None, *, as_json: bool) -> None:
    with ConsoleProgress() as progress:
        found = device_folder.write(study, trial, out=out, url=storage, data_dir=data_dir, progress=progress)
    if as_json:
        print(json.dumps(found))
        return
    print(f"{shown(str(out))}: trial {trial} and its teacher, {formatting.size(found['bytes'])}")
    print("carry it to the device and run there: python measure.py --out device.json")
    print("then here: kdsearch measure --import device.json")


def _import(study: Study, paths: list[Path], *, as_json: bool) -> None:
    found = device_folder.import_results(study, paths)
    if as_json:
        print(json.dumps({"study": study.study_name, "imported": found}))
        return
    for each in found:
        ratio = formatting.interval(each["ratio"], each["low"], each["high"])
        there = formatting.ratio(each["search_ratio"])
        new = "" if each["new"] else "; the study held it already"
        print(shown(f"trial {each['trial']} on {each['device']}: ratio {ratio}, {there} in the search{new}"))
