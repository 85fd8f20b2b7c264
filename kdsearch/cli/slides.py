"""`kdsearch slides` and `kdsearch claims`: the deck's rows and claims, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kdsearch.cli.options import DataDir, Device, Json, PlotlyJs, Precision, Storage
from kdsearch.cli.output import command_line
from kdsearch.storage import DEFAULT_STORAGE

Out = Annotated[Path, typer.Option(help="Folder of the page, the Markdown and the JSON.")]


def slides(
    dataset: Annotated[str, typer.Option(help="mnist or cifar10.")] = "mnist",
    rows: Annotated[str | None, typer.Option(help="Rows with commas between, as m1,m7 [default: all].")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Seeds of each row.")] = 5,
    reading: Annotated[
        str, typer.Option(help="Of what the deck leaves open: stated (by the deck), published (by its code) or both.")
    ] = "stated",
    data_dir: DataDir = None,
    device: Device = "auto",
    storage: Storage = DEFAULT_STORAGE,
    name: Annotated[str | None, typer.Option(help="Of the study that keeps them [default: slides-DATASET].")] = None,
    train_size: Annotated[int | None, typer.Option(min=1, help="Train on so many images only.")] = None,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="No training is longer than this.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Of the CIFAR-10 students, in place of 64.")] = None,
    precision: Precision = "auto",
    out: Out = Path("reports"),
    plotlyjs: PlotlyJs = "inline",
    as_json: Json = False,
) -> None:
    """Run the slide deck's rows by its own recipes, and set published beside measured; goes on where it stopped."""
    from kdsearch.cli.progress import ConsoleProgress
    from kdsearch.experiments.slides import page, run, summary
    from kdsearch.experiments.slides.rows import choose
    from kdsearch.reporting.pages.assets import checked

    jobs = choose(dataset, rows, reading)
    checked(plotlyjs)
    options = run.Options(
        dataset="cifar10" if dataset == "cifar10" else "mnist", jobs=jobs, repeats=repeats, url=storage,
        name=name or f"slides-{dataset}", data_dir=data_dir, device=device, train_size=train_size,
        max_epochs=max_epochs, width=width, precision=precision,
    )  # fmt: skip
    with ConsoleProgress() as progress:
        if rows is None:
            options = run.without_missing(options, progress)
        try:
            study = run.run(options, command=command_line(storage), progress=progress)
        except KeyboardInterrupt:
            progress.warning("interrupted: finished trainings are kept; the same command goes on")
            raise
        measured = summary.summarise(study, options)
        found = summary.as_json(study, options, measured)
        path = page.write(study, options, measured, out, plotlyjs=plotlyjs)
        progress.line(f"report: {path}, {path.with_suffix('.md')}, {path.with_suffix('.json')}")
    print(json.dumps(found) if as_json else page.text(measured))


def claims(
    dataset: Annotated[str, typer.Option(help="digits (a minute or two) or mnist.")] = "digits",
    seeds: Annotated[int, typer.Option(help="Paired trainings of each arm and teacher, at least 5.")] = 5,
    teachers: Annotated[int, typer.Option(help="Teachers that differ in their seed; each teaches every seed.")] = 5,
    only: Annotated[str | None, typer.Option(help="Claims with commas between, as 1,4 [default: all nine].")] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    storage: Storage = DEFAULT_STORAGE,
    out: Out = Path("reports"),
    plotlyjs: PlotlyJs = "inline",
    as_json: Json = False,
) -> None:
    """Try the slide deck's nine claims: an experiment, an effect with its interval and a verdict for each."""
    from kdsearch.cli.progress import ConsoleProgress
    from kdsearch.experiments.claims import lab, page, run
    from kdsearch.reporting.pages.assets import checked

    numbers = run.choose(only)
    checked(plotlyjs)
    command = command_line(storage)
    with ConsoleProgress() as progress:
        place = lab.open_lab(
            dataset, seeds=seeds, teachers=teachers, data_dir=data_dir, device=device, progress=progress
        )
        findings = run.run(place, numbers, cifar10_rows=run.slides_of_cifar10(storage))
        path = page.write(place, findings, out, command=command, plotlyjs=plotlyjs)
        progress.line(f"report: {path}, {path.with_suffix('.md')}, {path.with_suffix('.json')}")
    print(json.dumps(page.result(place, findings, command)) if as_json else page.text(findings))
