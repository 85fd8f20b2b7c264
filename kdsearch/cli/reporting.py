"""`kdsearch report`: a study's page, Markdown, CSV or JSON, once or while it runs; several studies in one page."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdsearch.cli.options import Json, Name, PlotlyJs, Storage
from kdsearch.cli.output import find_study, show_result, write_report
from kdsearch.errors import KdsearchError
from kdsearch.storage import DEFAULT_STORAGE
from kdsearch.system import signals

if TYPE_CHECKING:
    from kdsearch.reporting.pages.text import Format

ReportPath = Annotated[Path | None, typer.Option(help="Where the report goes [default: reports/NAME.html].")]
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
    from kdsearch.reporting.pages.text import checked

    form = checked(form)
    if compare:
        _compare(storage, name, compare, report, plotlyjs, as_json=as_json)
        return
    if watch:
        _watch(storage, name, report, plotlyjs, form, every)
    data, path = write_report(find_study(storage, name), storage, report, plotlyjs=plotlyjs, form=form)
    show_result(data, path, as_json=as_json)


def _watch(storage: str, name: str | None, path: Path | None, plotlyjs: str, form: Format, every: float) -> None:
    """Writes the report when the study has changed, until none of its trials waits or runs for a while."""
    from kdsearch.cli.progress import ConsoleProgress

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
    from kdsearch.reporting import collect
    from kdsearch.reporting.pages import compare, document
    from kdsearch.reporting.pages.assets import checked
    from kdsearch.system.files import write_text

    names = list(dict.fromkeys([*([name] if name else []), *others]))
    if len(names) < 2:
        raise KdsearchError(
            "--compare must make two studies or more", got=", ".join(names), remedy="give --name and --compare"
        )
    studies = [collect.collect(find_study(storage, each), storage_url=storage) for each in names]
    target = path or Path("reports") / (re.sub(r"[^\w.-]+", "_", "-".join(names)) + ".html")
    write_text(target, document.html(compare.page(studies), checked(plotlyjs)))
    found = compare.compared(studies) | {"report": str(target)}
    print(json.dumps(found, allow_nan=False) if as_json else compare.text(studies) + f"report: {target}")
