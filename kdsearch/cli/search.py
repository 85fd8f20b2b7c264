"""The commands that run trials: `kdsearch optimize`, `worker`, `train` and `confirm`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kdsearch import storage as storages
from kdsearch.cli.options import DataDir, Device, Json, Name, Precision, ReportPath, Storage, lazy_imports, takes
from kdsearch.cli.output import command_line, default_report, find_study, print_plan, show_result, write_report
from kdsearch.cli.progress import ConsoleProgress, stdout_to_stderr
from kdsearch.errors import KdsearchError, RunError, shown
from kdsearch.search.run_options import Options, Request
from kdsearch.storage import DEFAULT_STORAGE
from kdsearch.system import files, signals

with lazy_imports():
    from kdsearch.reporting import collect, confirmation, controls, formatting, verdict
    from kdsearch.reporting.dashboard import note
    from kdsearch.search import confirm as confirming
    from kdsearch.search import estimate, retrain
    from kdsearch.search import plan as plans
    from kdsearch.search import study as search
    from kdsearch.storage import retrying


@contextmanager
def ending(progress: ConsoleProgress, kept: str = "finished trials") -> Iterator[None]:
    """Runs its body until it ends or SIGTERM or Ctrl-C arrives; then trials are handed back and the exit code says so.

    Raises:
        typer.Exit: with 143 or 130.
    """
    try:
        with signals.handled():
            yield
    except KeyboardInterrupt:
        progress.warning(f"interrupted: {kept} are kept; the same command goes on")
        number = signals.received()
        raise typer.Exit(130 if number is None else 128 + number) from None


def worker(
    name: Annotated[str, typer.Option(help="Name of a study that `kdsearch optimize` has started.")],
    storage: Storage = DEFAULT_STORAGE,
    data_dir: DataDir = None,
    device: Device = "auto",
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which it begins no trial (default: the study's).")
    ] = None,
    supervisor: Annotated[int | None, typer.Option(hidden=True, help="The process with which it ends.")] = None,
) -> None:
    """Join a study from any machine that reaches its storage, and run trials until it is done."""
    # a supervisor keeps the live view itself, and its workers need not import what draws it
    page = note.Page(storage) if supervisor is None else None
    with ConsoleProgress() as progress, ending(progress), signals.tied_to(supervisor):
        search.join(storage, name, data_dir=data_dir, device=device, timeout=timeout, progress=progress, publish=page)


@takes(Request, Options)
def optimize(
    request: Request,
    options: Options,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that run trials: one a GPU where there are several, else they share.")
    ] = 1,
    report: ReportPath = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and an estimate of the time; train nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Search for students worth deploying; run it again and it goes on where it stopped."""
    search.check_options(options)
    _check_report(report, request.study)
    with stdout_to_stderr():  # reading the data and the teacher's module runs others' code
        planned = plans.make_plan(request)
        work = {}
        if dry_run:
            work = estimate.estimate(planned, options.budget(), candidates=options.candidates, pruner=options.pruner)
    if dry_run:
        print_plan(work, as_json=as_json)
        return
    files.check_output(report or default_report(planned.name))
    command = command_line(planned.url)
    with ConsoleProgress() as progress, ending(progress):
        try:
            optuna_study = search.run_plan(
                planned, options, workers=workers, command=command, progress=progress, publish=note.Page(planned.url)
            )
        except RunError:
            write_report(find_study(planned.url, planned.name), planned.url, report)
            raise
        data, path = write_report(optuna_study, planned.url, report)
    show_result(data, path, as_json=as_json, progress=progress)


def _check_report(report: Path | None, study_file: Path | None) -> None:
    if report is None:
        return
    files.check_no_database(report)
    if study_file is not None and report.resolve() == study_file.resolve():
        raise KdsearchError("--report must not replace the study file", got=report, remedy="name another file")


def train(
    trial: Annotated[int, typer.Option(min=0, help="Number of the trial.")],
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    whole: Annotated[
        bool, typer.Option("--whole", help="Train on the validation images too, to the epoch that the search chose.")
    ] = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    precision: Precision = "auto",
    out: Annotated[Path | None, typer.Option(help="The weights' file (default: NAME-trial-N.safetensors).")] = None,
    as_json: Json = False,
) -> None:
    """Train a trial's student again, print its scores and save its weights."""
    study = find_study(storage, name)
    path = out or Path(f"{files.fitting(study.study_name)}-trial-{trial}{'-whole' if whole else ''}.safetensors")
    files.check_output(path, tensors=True)
    with ConsoleProgress() as progress:
        student = retrain.retrain(
            study, trial, whole=whole, data_dir=data_dir, device=device, precision=precision, progress=progress
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


def confirm(
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    repeats: Annotated[
        int | None,
        typer.Option(help="Trainings of each student, each with a new seed (default: 5, or as begun)."),
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Train each without the teacher, too: what distillation gains.")
    ] = False,
    trials: Annotated[
        str | None,
        typer.Option(help="Numbers with commas between, as 3,7,9 (default: the front and all within noise of it)."),
    ] = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    precision: Precision = "auto",
    report: Annotated[Path | None, typer.Option(help="Write the study's HTML report there, too.")] = None,
    as_json: Json = False,
) -> None:
    """Train the front's students on the whole training set with new seeds: test accuracy and ratio with intervals."""
    if report is not None:
        files.check_output(report)
    title = find_study(storage, name).study_name
    with ConsoleProgress() as progress, ending(progress, "finished runs"):
        backend = retrying.patient(storages.open_storage(storage), progress.warning)
        study = storages.load_study(backend, title)
        try:
            chosen = confirming.choose(study, trials, band=True)
            confirming.confirm(
                study, chosen, repeats=repeats, control=control, data_dir=data_dir, device=device, precision=precision,
                url=storage, command=command_line(storage), progress=progress,
            )  # fmt: skip
        finally:
            storages.fold(backend)
        data = collect.collect(study, storage_url=storage)
        if report is not None:
            _, path = write_report(study, storage, report)
            progress.line(f"report: {path}")
        rows = data.trials.rename(columns={"number": "trial"})
        found = confirmation.result(study.study_name, rows, confirmation.confirmations(study.user_attrs), data.repeats)
        progress.console.print(_table(found))
        progress.line(found["sentence"])
        found |= {"control": controls.result(data), "verdict": verdict.verdict(data)}
        if data.controls:
            progress.line(found["control"]["sentence"])
        progress.line(found["verdict"])
    if as_json:
        print(json.dumps(found, allow_nan=False))


def _table(found: dict[str, Any]) -> Table:
    """Search and confirmation side by side, a row a confirmed trial."""
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
            formatting.percent(row["search_test_accuracy"]),
            formatting.percent(row["test_accuracy"]),
            "none of one seed" if low is None else f"{formatting.percent(low)} to {formatting.percent(high)}",
            formatting.points(row["test_difference"]),
            formatting.ratio(row["search_ratio"]),
            formatting.interval(row["ratio"], row["ratio_low"], row["ratio_high"]),
            kept + (", clear" if pair and pair["clear"] else ""),
        )
    return table
