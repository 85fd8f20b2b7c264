"""`kdsearch confirm`: the front's students trained again, and what of the front that confirms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdsearch.cli_options import DataDir, Device, Json, Name, Storage
from kdsearch.cli_output import command_line, find_study
from kdsearch.cli_worker import ending
from kdsearch.storage import DEFAULT_STORAGE


def confirm(
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    repeats: Annotated[int, typer.Option(help="Trainings of each student, each with a seed of its own.")] = 5,
    trials: Annotated[
        str | None, typer.Option(help="Numbers with commas between, as 3,7,9 [default: the whole front].")
    ] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    report: Annotated[Path | None, typer.Option(help="Write the study's HTML report there, too.")] = None,
    as_json: Json = False,
) -> None:
    """Train the front's students on the whole training set with new seeds: test accuracy and ratio with intervals."""
    from kdsearch import patience
    from kdsearch import storage as storages
    from kdsearch.console import ConsoleProgress
    from kdsearch.search import confirm as confirming

    found = find_study(storage, name)
    with ConsoleProgress() as progress, ending(progress, "finished runs"):
        backend = patience.patient(storages.open_storage(storage), progress.warning)
        study = storages.load_study(backend, found.study_name)
        try:
            chosen = confirming.choose(study, trials)
            confirming.confirm(
                study, chosen, repeats=repeats, data_dir=data_dir, device=device,
                command=command_line(storage), progress=progress,
            )  # fmt: skip
        finally:
            storages.fold(backend)
