"""What the command line shows on stderr: a live line and bars on a terminal, else plain log lines."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kdsearch import records
from kdsearch.errors import shown
from kdsearch.records import Config, EpochRecord

LOG_WIDTH = 160  # of tables where no terminal says its own
SILENCE = 60.0  # seconds, after which a log without bars says how far the work is
STYLES = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red"}


class ConsoleProgress(records.Progress):
    """Shows progress on stderr; a context manager, so that the terminal is put back whatever happens.

    Within it, what others print goes to stderr too.

    Args:
        console: where to; None: stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        if console is None and not self.console.is_terminal:
            self.console.width = LOG_WIDTH
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._teacher: TaskID | None = None
        self._study: TaskID | None = None
        self._unit = "trials"
        self._labels: dict[int, str] = {}  # of the trials that run
        self._aside = ExitStack()
        self._spoken = time.monotonic()

    def __enter__(self) -> ConsoleProgress:
        self._aside.enter_context(stdout_to_stderr())
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        self._aside.close()

    def line(self, text: str, style: str = "") -> None:
        """A line above the bars; nothing in it is taken for markup."""
        self.console.print(Text(shown(text)), style=style, soft_wrap=True)
        self._spoken = time.monotonic()

    def _after_silence(self, text: str) -> None:
        if time.monotonic() - self._spoken >= SILENCE and not self.console.is_terminal:
            self.line(text)

    def warning(self, text: str) -> None:
        self.line(f"warning: {text}", "yellow")

    def note(self, text: str) -> None:
        self.line(text)

    def teacher_started(self, family: str, epochs: int) -> None:
        self.line(
            f"teacher {family}: training for {epochs} {'epoch' if epochs == 1 else 'epochs'}, once; then it is kept"
        )
        self._teacher = self._bars.add_task("teacher", total=100, now="")

    def resumed(self, what: str, done: int, epochs: int) -> None:
        there = f"goes on at epoch {done + 1} of {epochs}" if done < epochs else "trained to its end"
        self.line(f"{what}: interrupted earlier, {there}")

    def teacher_batch(self, done: float) -> None:
        if self._teacher is not None:
            self._bars.update(self._teacher, completed=int(100 * done))
            self._after_silence(f"teacher: {done:.0%} of its training")

    def teacher_finished(self, accuracy: float, seconds: float) -> None:
        if self._teacher is not None:
            self._bars.remove_task(self._teacher)
            self._teacher = None
        self.line(f"teacher: test accuracy {accuracy:.2%}, trained in {seconds:.0f} s")

    def study_started(self, done: int, total: int | None, unit: str = "trials") -> None:
        """A bar for the study, in trials or epochs; it has no end where only time ends the study."""
        if done:
            held = f"{done} epochs of training" if unit == "epochs" else f"{done} finished {unit}"
            self.line(f"the study holds {held}; going on" + ("" if total is None else f" to {total}"))
        self._unit = unit
        self._study = self._bars.add_task(unit, total=total, completed=done, now="")

    def study_finished(self, spent: str) -> None:
        if spent:
            self.line(f"time: {spent}")

    def trial_started(self, number: int, anchor: str | None, config: Config) -> None:
        self._labels[number] = f"trial {number}" + (f" ({anchor})" if anchor else "")
        self._update(f"{self._labels[number]}: timing")

    def trial_epoch(self, number: int, record: EpochRecord, epochs: int) -> None:
        others = f" ({len(self._labels)} run)" if len(self._labels) > 1 else ""
        reached = "" if math.isnan(record.accuracy) else f", accuracy {record.accuracy:.2%}"
        now = f"{self._labels[number]}: epoch {record.epoch}/{epochs}{reached}{others}"
        self._update(now, advance=self._unit == "epochs")

    def trial_finished(self, number: int, state: str, text: str, *, counted: bool) -> None:
        """A line for the trial, and a step of the bar if it counts and the bar is not of epochs."""
        label = self._labels.pop(number, f"trial {number}")
        self.line(f"{label:<14} {state.lower():<9} {text}", STYLES.get(state, ""))
        self._update("", advance=counted and self._unit != "epochs")

    def _update(self, now: str, *, advance: bool = False) -> None:
        if self._study is not None:
            self._bars.update(self._study, now=escape(shown(now)), advance=int(advance))
            if now:
                self._after_silence(now)


def front_table(result: dict[str, Any]) -> Table:
    """The front of a `--json` result as a table."""
    from kdsearch.reporting.formatting import microseconds

    table = Table(title=f"front of {_cell(result['study'])} (hypervolume {result['hypervolume'] or 0:.4f})")
    columns = ("trial", "anchor", "ratio", "95 % interval", "µs", "µs alone", "validation", "test", "epoch")
    for column in (*columns, "parameters"):
        table.add_column(column, justify="left" if column in ("anchor", "parameters") else "right")
    for member in result["front"]:
        low, high = member["ratio_low"], member["ratio_high"]
        params = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in member["params"].items()}
        table.add_row(
            str(member["trial"]),
            _cell(member["anchor"] or ""),
            _figure(member["ratio"], ".4g"),
            f"{low:.4g} to {high:.4g}" if low is not None and high is not None else "",
            *(microseconds(member[name]) if member.get(name) else "" for name in ("microseconds", "microseconds_1")),
            *(_figure(member[name], ".2%") for name in ("accuracy", "test_accuracy")),
            _figure(member["best_epoch"], ""),
            _cell(", ".join(f"{key} {value}" for key, value in params.items())),
        )
    return table


def _cell(value: object) -> str:
    """A cell in which nothing is taken for markup."""
    return escape(shown(str(value)))


def _figure(value: float | None, form: str) -> str:
    """A number; empty where another program stored none that is finite."""
    return "" if value is None else format(value, form)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send stdout to stderr: Python's, and that of C libraries and started programs, which write to descriptor 1.

    A teacher that prints, or a download that reports progress, would otherwise corrupt the JSON on stdout.
    """
    kept, stdout, stderr = None, 1, 2
    with suppress(OSError, ValueError):  # stdout may be closed
        sys.stdout.flush()
        kept = os.dup(stdout)
        os.dup2(stderr, stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, stdout)
            os.close(kept)
