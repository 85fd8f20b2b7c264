"""The command line: parses, calls and prints. Heavy packages are imported where a command needs them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdsearch import __version__
from kdsearch.cli.bench import bench
from kdsearch.cli.confirming import confirm
from kdsearch.cli.dashboard import dashboard
from kdsearch.cli.export import export, pick
from kdsearch.cli.init import init
from kdsearch.cli.measuring import measure
from kdsearch.cli.options import DataDir, Device, Json, Name, Storage
from kdsearch.cli.output import command_line, find_study, print_plan, print_trial, show_result, write_report
from kdsearch.cli.reporting import ReportPath, report
from kdsearch.cli.slides import claims, slides
from kdsearch.cli.worker import ending, worker
from kdsearch.errors import KdsearchError, RunError, check_platform, shown
from kdsearch.storage import DEFAULT_STORAGE
from kdsearch.system import signals
from kdsearch.system.streams import stdout_to_stderr

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    help="Find the small network to deploy: the Pareto front of accuracy against inference ratio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(bench, name="bench")
app.command()(slides)
app.command()(claims)
app.command()(worker)
app.command()(report)
app.command()(init)
app.command()(pick)
app.command()(export)
app.command()(measure)
app.command()(dashboard)
app.command()(confirm)


def main() -> None:
    """The `kdsearch` command: one clear line and exit code 1 for what the user can mend."""
    try:
        check_platform()
        app()
    except SystemExit as ended:
        signals.leave(ended.code)
        raise
    except KdsearchError as error:
        fail(str(error))
    except Exception as error:
        from kdsearch.storage import trouble

        reason = trouble(error)
        if reason is None:
            raise
        fail(f"the storage must stay reachable: {reason}; run the same command again: finished trials are kept")


def fail(line: str) -> None:
    """Prints an error's line on stderr and exits with code 1."""
    print(f"kdsearch: error: {shown(line)}", file=sys.stderr)
    raise SystemExit(1)


def _version(show: bool) -> None:
    if show:
        print(f"kdsearch {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = (
        False
    ),
) -> None:
    pass


@app.command()
def optimize(
    dataset: Annotated[
        str | None, typer.Option(help="digits, mnist, cifar10 or folder:PATH [default: digits].", show_default=False)
    ] = None,
    study: Annotated[Path | None, typer.Option(help="A study file (TOML) [default: the data set's].")] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Finished trials the study ends with [default: 50, none beside another limit]."),
    ] = None,
    epochs_budget: Annotated[
        int | None, typer.Option(min=1, help="Epochs of training over all trials that the study ends with.")
    ] = None,
    storage: Storage = DEFAULT_STORAGE,
    name: Annotated[str | None, typer.Option(help="Name of the study [default: the data set's].")] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    sampler: Annotated[str, typer.Option(help="tpe, nsga2, random or gp.")] = "tpe",
    candidates: Annotated[
        int, typer.Option(min=1, help="Drawn for each trial, the most promising is trained; 1: the sampler's own draw.")
    ] = 24,
    pruner: Annotated[str, typer.Option(help="pareto or none.")] = "pareto",
    cost: Annotated[
        str,
        typer.Option(help="latency (measured in torch), onnx (in ONNX Runtime) or flops (counted: deterministic)."),
    ] = "latency",
    seed: Annotated[int | None, typer.Option(help="Makes trials repeatable, with --cost flops the study.")] = None,
    train_size: Annotated[int | None, typer.Option(min=1, help="Train on so many images only.")] = None,
    max_epochs: Annotated[int | None, typer.Option(min=1, help="No training is longer than this.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which no trial starts and the running one is cut.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that run trials: one a GPU where there are several, else they share.")
    ] = 1,
    report: ReportPath = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and an estimate of the time; train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Search for students worth deploying; run it again and it goes on where it stopped."""
    from kdsearch.cli.progress import ConsoleProgress
    from kdsearch.reporting.dashboard.publish import Page
    from kdsearch.search import estimate
    from kdsearch.search import plan as plans
    from kdsearch.search import study as search
    from kdsearch.search.options import Options

    options = Options(
        trials=trials, epochs_budget=epochs_budget, timeout=timeout, sampler=sampler, candidates=candidates,
        pruner=pruner, seed=seed,
    )  # fmt: skip
    search.check_options(options)
    with stdout_to_stderr():  # reading the data and the teacher's module runs others' code
        planned = plans.make_plan(
            dataset=dataset,
            study=study,
            name=name,
            storage_url=storage,
            data_dir=data_dir,
            device=device,
            cost=cost,
            train_size=train_size,
            max_epochs=max_epochs,
        )
        planned_work = estimate.estimate(planned, options.budget()) if dry_run else None
    if planned_work is not None:
        print_plan(planned_work, as_json=as_json)
        return
    command = command_line(storage)
    with ConsoleProgress() as progress, ending(progress):
        try:
            optuna_study = search.run_plan(
                planned, options, workers=workers, command=command, progress=progress, publish=Page(planned.url)
            )
        except RunError:
            write_report(find_study(storage, planned.name), storage, report)
            raise
        data, path = write_report(optuna_study, storage, report)
    show_result(data, path, as_json=as_json, progress=progress)


@app.command()
def status(
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    trial: Annotated[int | None, typer.Option(min=0, help="Print this trial instead, and why it ended.")] = None,
    as_json: Json = False,
) -> None:
    """Print a study's front and how many trials it holds, or one of its trials."""
    study = find_study(storage, name)
    if trial is not None:
        print_trial(study, trial, storage, as_json=as_json)
        return
    from kdsearch.reporting.collect import collect

    show_result(collect(study, storage_url=storage), None, as_json=as_json)


@app.command()
def train(
    trial: Annotated[int, typer.Option(min=0, help="Number of the trial.")],
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    whole: Annotated[
        bool, typer.Option("--whole", help="Train on the validation images too, to the epoch that the search chose.")
    ] = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="The weights' file [default: NAME-trial-N.safetensors].")] = None,
    as_json: Json = False,
) -> None:
    """Train a trial's student again, print its scores and save its weights."""
    from kdsearch.cli.progress import ConsoleProgress
    from kdsearch.search import retrain

    study = find_study(storage, name)
    with ConsoleProgress() as progress:
        student = retrain.retrain(study, trial, whole=whole, data_dir=data_dir, device=device, progress=progress)
    path = out or Path(
        re.sub(r"[^\w.-]+", "_", f"{study.study_name}-trial-{trial}" + ("-whole" if whole else "")) + ".safetensors"
    )
    retrain.save(student, path)
    scores = {
        "trial": trial,
        "accuracy": student.accuracy,
        "test_accuracy": student.test_accuracy,
        "epoch": student.epoch,
        "whole": whole,
        "params": student.config,
        "weights": str(path),
    }
    if as_json:
        print(json.dumps(scores))
    else:
        chosen = "on the whole training set" if whole else f"validation accuracy {student.accuracy:.2%}"
        print(f"trial {trial}: {chosen}, test accuracy {student.test_accuracy:.2%}")
        print(f"best epoch {student.epoch}, weights in {path}")


@app.command()
def doctor(
    dataset: Annotated[
        str | None, typer.Option(help="Look at this data set alone: folder:PATH's images are all decoded.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print versions, device, data sets found, what is missing and how to get it; or what is in a data set."""
    import dataclasses

    from kdsearch.cli.doctor import examine, examine_data

    findings = examine(data_dir) if dataset is None else examine_data(dataset, data_dir)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(_findings_table(findings))


def _findings_table(findings: list[Any]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table("what", "found", "to do", box=box.SIMPLE)
    for finding in findings:
        table.add_row(finding.what, escape(shown(finding.found)), escape(shown(finding.remedy)))
    return table
