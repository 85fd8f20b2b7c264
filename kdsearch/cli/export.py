"""`kdsearch pick` and `export`: the winner leaves the house."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdsearch.cli.options import DataDir, Json, Name, Storage
from kdsearch.cli.output import find_study
from kdsearch.errors import KdsearchError, shown
from kdsearch.storage import DEFAULT_STORAGE

MinAccuracy = Annotated[float | None, typer.Option(help="Validation accuracy at least, in percent (97.5).")]
MinRatio = Annotated[float | None, typer.Option(min=0, help="Teacher time / student time at least.")]
MaxParameters = Annotated[int | None, typer.Option(min=1, help="Parameters at most.")]
Knee = Annotated[bool, typer.Option("--knee", help="Take what gives up least on accuracy and ratio together.")]


def pick(
    min_accuracy: MinAccuracy = None,
    min_ratio: MinRatio = None,
    max_parameters: MaxParameters = None,
    knee: Knee = False,
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
) -> None:
    """Name the trial to ship, and why: chosen by validation accuracy, with its test accuracy beside it."""
    from kdsearch.export import pick as picking
    from kdsearch.reporting.collect import collect

    wish = picking.Wish(min_accuracy, min_ratio, max_parameters, knee)
    wish.check()
    data = collect(find_study(storage, name), storage_url=storage)
    choice = picking.choose(data, wish)
    if as_json:
        print(json.dumps(picking.result(data, choice), allow_nan=False))
    else:
        print(shown(choice.why + (f" ({data.stand_ins})" if data.stand_ins else "")))


def export(
    out: Annotated[Path, typer.Option(help="Folder of the file.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Number of the trial; or say what it must reach.")] = None,
    kind: Annotated[str, typer.Option("--format", help="onnx, pt2 or safetensors.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="ONNX in integers, calibrated on training images.")] = False,
    min_accuracy: MinAccuracy = None,
    min_ratio: MinRatio = None,
    max_parameters: MaxParameters = None,
    knee: Knee = False,
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write a trial's student as one file, verified and timed in its own runtime, with a model card beside it."""
    from kdsearch.cli.progress import ConsoleProgress
    from kdsearch.export import formats, ship
    from kdsearch.export import pick as picking
    from kdsearch.reporting.collect import collect
    from kdsearch.search.plan import check_choice

    check_choice("--format", kind, formats.FORMATS)
    if int8 and kind != "onnx":
        raise KdsearchError("--int8 is for ONNX", got=f"--format {kind}", remedy="leave one of them out")
    kind = formats.INT8 if int8 else kind
    study = find_study(storage, name)
    if trial is None:
        wish = picking.Wish(min_accuracy, min_ratio, max_parameters, knee)
        trial = picking.choose(collect(study, storage_url=storage), wish).number
    with ConsoleProgress() as progress:
        found = ship.export(study, trial, kind=kind, out=out, url=storage, data_dir=data_dir, progress=progress)
    if as_json:
        print(json.dumps(found))
        return
    print(
        f"{shown(found['file'])}: {found['test_accuracy']:.2%} test accuracy in {found['runtime']}, ratio there "
        f"{found['ratio']:.4g} ({found['low']:.4g} to {found['high']:.4g}), in the search {found['search_ratio']:.4g}"
    )
