"""The commands that measure claims: those under `kdsearch bench`, `slides` and `claims`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdsearch.cli.options import DataDir, Device, Json, PlotlyJs, Precision, Storage, lazy_imports, takes
from kdsearch.cli.output import command_line
from kdsearch.cli.progress import ConsoleProgress, stdout_to_stderr
from kdsearch.errors import KdsearchError
from kdsearch.search.run_options import Request, Source
from kdsearch.storage import DEFAULT_STORAGE

with lazy_imports():
    from kdsearch.experiments.claims import lab
    from kdsearch.experiments.claims import page as claims_page
    from kdsearch.experiments.claims import run as claims_run
    from kdsearch.experiments.search_bench import comparison
    from kdsearch.experiments.search_bench import page as search_page
    from kdsearch.experiments.search_bench import run as replays
    from kdsearch.experiments.search_bench import tables as tables_of
    from kdsearch.experiments.search_bench import tabulate as tabulating
    from kdsearch.experiments.slides import deck, summary
    from kdsearch.experiments.slides import page as slides_page
    from kdsearch.experiments.slides import run as slides_run
    from kdsearch.experiments.train_bench import anytime as compared
    from kdsearch.experiments.train_bench import page as train_page
    from kdsearch.experiments.train_bench import run as training
    from kdsearch.reporting.pages import assets
    from kdsearch.search import plan as plans
    from kdsearch.system import machine

bench = typer.Typer(help="Measure the search on real learning curves, what these are made of, and the training loop.",
                    no_args_is_help=True)  # fmt: skip


@bench.command()
def search(
    tables: Annotated[
        str | None,
        typer.Option(
            help="With commas between: names or paths of tables, families, family:NAME, lcbench:FOLDER (the tasks for "
            "the report), lcbench:FOLDER:TASK or lcbench-tuning:FOLDER (default: the tables that ship)."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Replays of each arm.")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="The others follow it.")] = 0,
    budget: Annotated[int | None, typer.Option(min=1, help="Epochs of a replay (default: 30 full trainings).")] = None,
    arms: Annotated[
        str | None, typer.Option(help="With commas between, as tpe/all/ours,tpe/all/none (default: all of them).")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="NSGA-II, GP and 4 asynchronous workers, too: hours.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes (default: one a core).")] = None,
    out: Annotated[Path, typer.Option(help="Folder of bench-search.html and bench-search.md.")] = Path("reports"),
    plotlyjs: PlotlyJs = "inline",
    as_json: Json = False,
) -> None:
    """Replay searches on learning curves: pruning rules and proposals at equal epochs; goes on where it stopped."""
    way = assets.checked(plotlyjs)  # before the replays, which take long
    with ConsoleProgress() as progress:
        measured = replays.measure(
            tables_of.shipped() if tables is None else [name.strip() for name in tables.split(",")],
            seeds=range(first_seed, first_seed + seeds),
            budget=budget,
            full=full,
            jobs=jobs or os.cpu_count() or 1,
            progress=progress,
            only=None if arms is None else [name.strip() for name in arms.split(",")],
            kept=replays.kept_file(),
        )
        found = comparison.summarise(measured)
        path = search_page.write(measured, found, out, ["kdsearch", *sys.argv[1:]], way)
        progress.line(f"report: {path}, {path.with_suffix('.md')}")
    if as_json:
        print(json.dumps(found, allow_nan=False))
    else:
        for bar in comparison.bars(measured):
            print(f"{'met' if bar.met else 'NOT MET':<8} {bar.what}: {bar.figure} (bar: {bar.bar})")


@bench.command()
@takes(Source)
def tabulate(
    source: Source,
    out: Annotated[Path, typer.Option(help="The table's file, NAME.json.gz.")],
    count: Annotated[int, typer.Option(min=1, help="Different configurations, drawn at random.")] = 450,
    epochs: Annotated[int, typer.Option(min=1, help="Of every configuration.")] = 30,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of one thread (default: one a core).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the configurations and their training.")] = 0,
    as_json: Json = False,
) -> None:
    """Train random configurations of a study to their end and keep every epoch's accuracy; goes on where it stopped."""
    if not out.name.endswith(".json.gz"):
        raise KdsearchError("--out must end with .json.gz", got=out, remedy="give NAME.json.gz")
    with ConsoleProgress() as progress:
        path = tabulating.tabulate(
            out, Request(**vars(source)), count=count, epochs=epochs, workers=workers or os.cpu_count() or 1, seed=seed,
            progress=progress,
        )  # fmt: skip
    rows = len(tables_of.load(str(path)).configs)
    text = f"{path}: {rows} configurations, {epochs} epochs"
    print(json.dumps({"table": str(path), "rows": rows}) if as_json else text)


@bench.command()
def train(
    rows: Annotated[str, typer.Option(help="Of the slides, with commas between.")] = "c1,c5,m7",
    device: Device = "auto",
    data_dir: DataDir = None,
    batch: Annotated[int | None, typer.Option(min=2, help="Images a step (default: the row's).")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of a sample (default: a few seconds' worth by device and data set).")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Rounds, of each loop in turn; 6 give an interval of 95 %.")] = 7,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Of the plain loop's DataLoader (default: one for two cores).")
    ] = None,
    precision: Precision = "auto",
    out: Annotated[Path, typer.Option(help="Folder of bench-train.html, .md and .json.")] = Path("reports"),
    plotlyjs: PlotlyJs = "inline",
    as_json: Json = False,
) -> None:
    """Time our epoch loop and a plain PyTorch loop in turn on the slides' rows, once both are seen to do the same."""
    way = assets.checked(plotlyjs)
    names = list(dict.fromkeys(name.strip() for name in rows.split(",") if name.strip()))
    options = training.Options(
        names=names, device=device, data_dir=data_dir, steps=steps, samples=samples, batch=batch, workers=workers,
        precision=precision,
    )  # fmt: skip
    with ConsoleProgress() as progress:
        load = training.load()
        measured = training.measure(options, progress)
        there = machine.resolve_device(device)
        found = train_page.result(measured, there, command=command_line(), load=load)
        path = train_page.write(found, measured, out, plotlyjs=way)
        progress.line(f"report: {path}, {path.with_suffix('.md')}, {path.with_suffix('.json')}")
    print(json.dumps(found, allow_nan=False) if as_json else train_page.text(measured, there))


@bench.command()
@takes(Source)
def recipes(
    source: Source,
    student: Annotated[
        str | None, typer.Option(help="An anchor, or a JSON object that changes the first one (default: the first).")
    ] = None,
    epochs: Annotated[str, typer.Option(help="Lengths of training, with commas between.")] = "1,2,4,8,15",
    rates: Annotated[str, typer.Option(help="Multiples of the study file's learning rate.")] = "0.3,1",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder of bench-recipes.html, .md and .json.")] = Path("reports"),
    plotlyjs: PlotlyJs = "inline",
    as_json: Json = False,
) -> None:
    """Compare recipes that may stop at any epoch with a one-cycle rate planned for each length."""
    way = assets.checked(plotlyjs)
    lengths, multiples = _whole_numbers("--epochs", epochs), _numbers("--rates", rates)
    with stdout_to_stderr():  # reading the data and the teacher's module runs others' code
        plan = plans.make_plan(Request(**vars(source)))
    options = compared.Options(
        config=compared.student_config(plan.spec, student),
        lengths=sorted(set(lengths)),
        rates=multiples,
        seeds=list(range(seeds)),
    )
    with ConsoleProgress() as progress:
        found = compared.measure(plan, options, progress)
        made = compared.result(found, options, plan, command=command_line())
        path = compared.write(found, options, made, out, plotlyjs=way)
        progress.line(f"report: {path}, {path.with_suffix('.md')}, {path.with_suffix('.json')}")
    print(json.dumps(made, allow_nan=False) if as_json else compared.text(found, options, made))


def _numbers(option: str, given: str) -> list[float]:
    with contextlib.suppress(ValueError):
        numbers = [float(number) for number in given.split(",") if number.strip()]
        if all(map(math.isfinite, numbers)):
            return numbers
    raise KdsearchError(f"{option} must be numbers with commas between", got=given, remedy="write them as 1,2,4")


def _whole_numbers(option: str, given: str) -> list[int]:
    numbers = _numbers(option, given)
    if not all(number.is_integer() for number in numbers):
        raise KdsearchError(f"{option} must be whole numbers", got=given, remedy="write them as 1,2,4")
    return [int(number) for number in numbers]


Out = Annotated[Path, typer.Option(help="Folder of the page, the Markdown and the JSON.")]


def slides(
    dataset: Annotated[str, typer.Option(help="mnist or cifar10.")] = "mnist",
    rows: Annotated[str | None, typer.Option(help="Rows with commas between, as m1,m7 (default: all).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Seeds of each row.")] = 5,
    reading: Annotated[
        str, typer.Option(help="Of what the deck leaves open: stated (by the deck), published (by its code) or both.")
    ] = "stated",
    data_dir: DataDir = None,
    device: Device = "auto",
    storage: Storage = DEFAULT_STORAGE,
    name: Annotated[str | None, typer.Option(help="Of the study that keeps them (default: slides-DATASET).")] = None,
    train_size: Annotated[int | None, typer.Option(min=1, help="Train on so many images only.")] = None,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="No training is longer than this.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Of the CIFAR-10 students, in place of 64.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Weights of the CIFAR-10 teacher (default: it is trained).")
    ] = None,
    precision: Precision = "auto",
    out: Out = Path("reports"),
    plotlyjs: PlotlyJs = "inline",
    as_json: Json = False,
) -> None:
    """Run the slide deck's rows by its own recipes, and set published beside measured; goes on where it stopped."""
    jobs = deck.choose(dataset, rows, reading)
    assets.checked(plotlyjs)
    options = slides_run.Options(
        dataset="cifar10" if dataset == "cifar10" else "mnist", jobs=jobs, repeats=repeats, url=storage,
        name=name or f"slides-{dataset}", data_dir=data_dir, device=device, train_size=train_size,
        max_epochs=max_epochs, width=width, precision=precision, teacher=teacher,
    )  # fmt: skip
    with ConsoleProgress() as progress:
        if rows is None:
            options = slides_run.without_missing(options, progress)
        try:
            study = slides_run.run(options, command=command_line(storage), progress=progress)
        except KeyboardInterrupt:
            progress.warning("interrupted: finished trainings are kept; the same command goes on")
            raise
        measured = summary.summarise(study, options)
        found = summary.as_json(study, options, measured)
        path = slides_page.write(study, options, measured, out, plotlyjs=plotlyjs)
        progress.line(f"report: {path}, {path.with_suffix('.md')}, {path.with_suffix('.json')}")
    print(json.dumps(found) if as_json else slides_page.text(measured))


def claims(
    dataset: Annotated[str, typer.Option(help="digits (half an hour) or mnist (hours).")] = "digits",
    seeds: Annotated[int, typer.Option(help="Paired trainings of each arm and teacher, at least 5.")] = 5,
    teachers: Annotated[int, typer.Option(help="Teachers that differ in their seed; each teaches every seed.")] = 5,
    only: Annotated[str | None, typer.Option(help="Claims with commas between, as 1,4 (default: all nine).")] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    storage: Storage = DEFAULT_STORAGE,
    out: Out = Path("reports"),
    plotlyjs: PlotlyJs = "inline",
    as_json: Json = False,
) -> None:
    """Try the slide deck's nine claims: an experiment, an effect with its interval and a verdict for each."""
    numbers = claims_run.choose(only)
    assets.checked(plotlyjs)
    command = command_line(storage)
    with ConsoleProgress() as progress:
        place = lab.open_lab(
            dataset, seeds=seeds, teachers=teachers, data_dir=data_dir, device=device, progress=progress
        )
        findings = claims_run.run(place, numbers, cifar10_rows=claims_run.slides_of_cifar10(storage))
        path = claims_page.write(place, findings, out, command=command, plotlyjs=plotlyjs)
        progress.line(f"report: {path}, {path.with_suffix('.md')}, {path.with_suffix('.json')}")
    print(json.dumps(claims_page.result(place, findings, command)) if as_json else claims_page.text(findings))
