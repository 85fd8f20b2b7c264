"""`kdsearch pick`, `export` and `measure`: the winner leaves the house."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kdsearch.cli_options import Json, Name, Storage
from kdsearch.cli_output import find_study
from kdsearch.errors import shown
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
        print(shown(choice.why))
