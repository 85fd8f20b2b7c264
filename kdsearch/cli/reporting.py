"""The commands that show a study or this machine: `kdsearch report`, `status`, `dashboard` and `doctor`."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdsearch.cli.options import DataDir, Json, Name, PlotlyJs, ReportPath, Storage, lazy_imports
from kdsearch.cli.output import default_report, find_study, print_trial, show_result, write_report
from kdsearch.cli.progress import ConsoleProgress
from kdsearch.errors import KdsearchError, shown
from kdsearch.records import StudyAttr
from kdsearch.storage import DEFAULT_STORAGE, hidden, load_study, masked, open_storage, study_names
from kdsearch.system import files, signals

with lazy_imports():
    from kdsearch.cli import doctor as examining
    from kdsearch.reporting import collect
    from kdsearch.reporting.dashboard import artifacts as shelf_room
    from kdsearch.reporting.dashboard import note
    from kdsearch.reporting.pages import assets, compare, document, text

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


Compare = Annotated[
    list[str] | None, typer.Option(help="Another study of the storage to put beside it; may be given several times.")
]


def report(
    name: Name = None,
    storage: Storage = DEFAULT_STORAGE,
    report: ReportPath = None,
    form: Annotated[str, typer.Option("--format", help="html, md, csv (every trial) or json.")] = "html",
    compare: Compare = None,
    watch: Annotated[bool, typer.Option(help="Write it again while the study runs; Ctrl-C ends it.")] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks of --watch.")] = 10,
    plotlyjs: PlotlyJs = "inline",
    as_json: Json = False,
) -> None:
    """Write the report of a study, from its storage alone."""
    form = text.checked(form)
    if compare:
        if watch or form != "html":
            given = "--watch" if watch else f"--format {form}"
            raise KdsearchError("--compare must stand alone: it writes one page", got=given, remedy=f"drop {given}")
        _compare(storage, name, compare, report, plotlyjs, as_json=as_json)
        return
    if watch:
        _watch(storage, name, report, plotlyjs, form, every)
    data, path = write_report(find_study(storage, name), storage, report, plotlyjs=plotlyjs, form=form)
    show_result(data, path, as_json=as_json)


def _watch(storage: str, name: str | None, path: Path | None, plotlyjs: str, form: text.Format, every: float) -> None:
    """Writes the report when the study has changed, until none of its trials waits or runs for a while."""
    progress, seen, still = ConsoleProgress(), None, 0
    while still < 2:
        study = find_study(storage, name)
        counts = {trial.number: trial.state.name for trial in study.get_trials(deepcopy=False)}
        running = any(state in ("RUNNING", "WAITING") for state in counts.values())
        if counts != seen:
            refresh = max(1, round(every))
            _, at = write_report(study, storage, path, plotlyjs=plotlyjs, form=form, refresh=refresh)
            progress.line(f"{time.strftime('%H:%M:%S')} {at}: {len(counts)} trials")
        # between two trials of one worker none runs: only a study that stands still is over
        still = 0 if running or counts != seen else still + 1
        seen = counts
        if still < 2:
            signals.pause(every)


def _compare(
    storage: str, name: str | None, others: list[str], path: Path | None, plotlyjs: str, *, as_json: bool
) -> None:
    names = list(dict.fromkeys([*([name] if name else []), *others]))
    if len(names) < 2:
        raise KdsearchError(
            "--compare must make two studies or more", got=", ".join(names), remedy="give --name and --compare"
        )
    studies = [collect.collect(find_study(storage, each), storage_url=storage) for each in names]
    target = path or default_report("-".join(names))
    files.write_text(target, document.html(compare.page(studies), assets.checked(plotlyjs)))
    found = compare.compared(studies) | {"report": str(target)}
    print(json.dumps(found, allow_nan=False) if as_json else compare.text(studies) + f"report: {target}")


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
    else:
        show_result(collect.collect(study, storage_url=storage), None, as_json=as_json)


HOST = "127.0.0.1"
EVERY = 30.0  # seconds between two looks for new members of a front


def dashboard(
    storage: Storage = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1; use an SSH tunnel from elsewhere.")] = 8080,
    artifacts: Annotated[
        Path | None,
        typer.Option(help="Folder of curves and model cards (default: beside the storage's file, else the user's)."),
    ] = None,
) -> None:
    """Watch studies live in optuna-dashboard, on this machine only."""
    backend = open_storage(storage, log=False)  # makes the tables first: the dashboard cannot start without
    import optuna_dashboard

    shelf = shelf_room.Shelf(storage, shelf_room.folder(storage, artifacts))
    print(f"optuna-dashboard of {masked(storage)} on http://{HOST}:{port} (Ctrl-C ends it)", file=sys.stderr)
    for number, name in sorted((study._study_id, study.study_name) for study in backend.get_all_studies()):
        print(f"  {shown(name)}: http://{HOST}:{port}/dashboard/studies/{number}", file=sys.stderr)
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(shelf, storage, over), daemon=True)
    keeper.start()
    try:
        optuna_dashboard.run_server(backend, host=HOST, port=port, artifact_store=shelf.store)
    except OSError as error:
        raise KdsearchError(f"--port must be free: {error.strerror}", got=port, remedy="give another --port") from None
    finally:
        over.set()
        keeper.join(timeout=5)


def _keep(shelf: shelf_room.Shelf, url: str, over: threading.Event) -> None:
    """Brings the artifacts of all searches up to date until the dashboard ends, with a connection of its own.

    A study whose view was never written, as by an earlier version, gets one too.
    """
    warned: set[str] = set()
    seen: dict[str, object] = {}
    backend: BaseStorage | None = None
    while True:
        with _warning("", url, warned):
            backend = backend or open_storage(url, log=False)
            for name in study_names(backend, searches=True):
                with _warning(name, url, warned):
                    _keep_one(shelf, url, backend, name, seen)
            backend.remove_session()
        if over.wait(EVERY):
            return


def _keep_one(shelf: shelf_room.Shelf, url: str, backend: BaseStorage, name: str, seen: dict[str, object]) -> None:
    study = load_study(backend, name)
    attributes = study.user_attrs
    if StudyAttr.DEFINITION not in attributes:
        return  # not of kdsearch
    ended = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    sign = (ended, sorted(key for key in attributes if key.startswith(StudyAttr.CONFIRMED)))
    if seen.get(name) == sign:
        return
    if f"{note.FIGURE_KEY}0" not in backend.get_study_system_attrs(study._study_id):
        note.Page(url)(study, True)
    shelf.fill(study)
    seen[name] = sign


@contextmanager
def _warning(name: str, url: str, warned: set[str]) -> Iterator[None]:
    """Says once a study that its artifacts are late: the dashboard shows it all the same."""
    try:
        yield
    except Exception as error:
        if name not in warned:
            warned.add(name)
            of, said = shown(name) or "all studies", (str(error).splitlines() or [type(error).__name__])[0]
            print(f"warning: curves and model cards of {of} are late: {hidden(said, url)}", file=sys.stderr)


def doctor(
    dataset: Annotated[
        str | None, typer.Option(help="Look at this data set alone: folder:PATH's images are all decoded.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print versions, device, data sets found, what is missing and how to get it; or what is in a data set."""
    findings = examining.examine(data_dir) if dataset is None else examining.examine_data(dataset, data_dir)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings]))
        return
    table = Table("what", "found", "to do", box=box.SIMPLE)
    for finding in findings:
        table.add_row(finding.what, escape(shown(finding.found)), escape(shown(finding.remedy)))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
