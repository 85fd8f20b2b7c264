"""What the command line prints and writes of a study."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsearch import storage as storages
from kdsearch.cli.options import lazy_imports
from kdsearch.cli.progress import ConsoleProgress, front_table
from kdsearch.errors import StorageError, shown
from kdsearch.storage import hidden, load_trial
from kdsearch.system import files

with lazy_imports():
    from kdsearch.reporting import collect, verdict
    from kdsearch.reporting.pages import one_trial, study_page, text

if TYPE_CHECKING:
    from optuna import Study


def print_plan(plan: dict[str, Any], *, as_json: bool) -> None:
    """Prints what `search.estimate` found."""
    if as_json:
        print(json.dumps(plan, allow_nan=False))
        return
    images, seconds = plan["images"], plan["seconds"]
    limits = {"finished trials": plan["trials"], "epochs": plan["epochs_budget"], "s": plan["timeout"]}
    ends = " or ".join(f"{value:,.10g} {unit}" for unit, value in limits.items() if value is not None)
    print(f"study     {shown(plan['study'])}: {ends} of {shown(plan['dataset'])}, cost {plan['cost']}")
    print(f"images    {images['train']} train, {images['validation']} validation, {images['test']} test")
    for line in plan["data"]:
        print(f"data      {shown(line)}")
    print(f"device    {plan['device']}")
    print(f"precision {shown(plan['precision'])}")
    print(f"anchors   {shown(', '.join(plan['anchors'])) or 'none'}")
    for key, values in plan["space"].items():
        print(f"space     {shown(f'{key}: {values}')}")
    for key, value in seconds.items():
        if key != "all":
            print(f"estimate  {key:<10}{_time(value):>12}  {PARTS[key]}")
    # pruning makes a number of trials cheaper, while a budget is spent all the same
    unpruned = "" if plan["trials"] is None else ", without pruning"
    print(f"estimate  {'in all':<10}{_time(seconds['all']):>12}  by one process{unpruned}")
    saved = plan["pruning"]["seconds"]
    if saved:
        seen = f"{plan['pruning']['share']:.0%} of training and scoring, {plan['pruning']['seen']}"
        left = f"{_time(seconds['all'] - saved)} are left"
        print(f"expected  {'pruning':<10}{'-' + _time(saved):>12}  {seen}: {left}")


PARTS = {
    "teacher": "its training, once; 0 where it is kept",
    "answers": "of the teacher to the training images or their views, once",
    "training": "of students",
    "timing": "ratios, once for each architecture",
    "scoring": "validation images after each epoch, test images once a trial",
    "search": "and storage",
    "trials": "until the timeout",
}
"""What the parts of an estimate are."""


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def command_line(storage: str | None = None) -> str:
    """The command that runs, as a report names it, a password in the storage's URL masked."""
    return shlex.join(hidden(word, storage) for word in ["kdsearch", *sys.argv[1:]])


def find_study(storage: str, name: str | None) -> Study:
    """The study of that name, or the only search in the storage: what the slides' rows left there does not count.

    Raises:
        StorageError: there is no such file or study, or no name and not exactly one search.
    """
    backend = storages.open_storage(storage, log=False, make=False)
    known = storages.study_names(backend, searches=name is None)
    if name is None and len(known) != 1:
        there = ", ".join(known) or "none yet"
        raise StorageError(
            f"--name must say which study (studies there: {there})",
            got=storages.masked(storage),
            remedy="give --name" if known else "run `kdsearch optimize` first",
        )
    return storages.load_study(backend, name or known[0])


def default_report(study: str, form: text.Format = "html") -> Path:
    """Where the report of a study goes, if nothing else is said."""
    return Path("reports") / f"{files.fitting(study)}.{form}"


def write_report(
    study: Study,
    storage: str,
    path: Path | None,
    *,
    plotlyjs: Any = "inline",
    form: text.Format = "html",
    refresh: int | None = None,
) -> tuple[collect.StudyData, Path]:
    """Writes a study's report; returns its data and where it went."""
    data = collect.collect(study, storage_url=storage)
    target = path or default_report(study.study_name, form)
    return data, study_page.write(data, target, plotlyjs=plotlyjs, form=form, refresh=refresh)


def show_result(
    data: collect.StudyData, path: Path | None, *, as_json: bool, progress: ConsoleProgress | None = None
) -> None:
    """Prints a study's result: JSON on stdout, or its front as a table on stderr."""
    result = collect.result(data, report=None if path is None else str(path))
    progress = progress or ConsoleProgress()
    if data.stand_ins:
        progress.line(data.stand_ins)
    if result["front"]:
        progress.console.print(front_table(result))
        progress.line(verdict.verdict(data))
    counts = data.counts
    untrained = f", {counts['untrained']} not trained" if counts["untrained"] else ""
    progress.line(
        f"trials: {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed{untrained}"
    )
    if verdict.effort(data):
        progress.line(verdict.effort(data))
    if path is not None:
        progress.line(f"report: {path}")
    if as_json:
        print(json.dumps(result, allow_nan=False))


def print_trial(study: Study, number: int, storage: str, *, as_json: bool) -> None:
    """Prints one trial of a study and why it ended.

    Raises:
        StorageError: the study holds no such trial, or has other objectives.
    """
    load_trial(study, number)
    found = one_trial.facts(collect.collect(study, storage_url=storage), number)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    for title, text in one_trial.lines(found):
        print(f"{title:<12}{shown(text)}")
