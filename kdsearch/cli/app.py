"""The `kdsearch` command: which commands there are, and errors as one line.

A command's module is imported when the command is called: `kdsearch --help` needs none of them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from kdsearch import __version__
from kdsearch.errors import KdsearchError, check_platform, shown

COMMANDS = {
    "optimize": ("search", "Search for students worth deploying; run it again and it goes on where it stopped."),
    "status": ("reporting", "Print a study's front and how many trials it holds, or one of its trials."),
    "report": ("reporting", "Write the report of a study, from its storage alone."),
    "confirm": (
        "search",
        "Train the front's students on the whole training set with new seeds: test accuracy and ratio with intervals.",
    ),
    "pick": ("export", "Name the trial to ship, and why: by itself, the fastest that is shown to be near the teacher."),
    "export": (
        "export",
        "Write a trial's student as one file, verified and timed in its own runtime, with a model card beside it.",
    ),
    "train": ("search", "Train a trial's student again, print its scores and save its weights."),
    "measure": (
        "export",
        "Time the front in torch and ONNX Runtime here; or make a folder for a device, and import its timings.",
    ),
    "worker": ("search", "Join a study from any machine that reaches its storage, and run trials until it is done."),
    "dashboard": ("reporting", "Watch studies live in optuna-dashboard, on this machine only."),
    "init": (
        "init",
        "Write a commented study file for `kdsearch optimize --study FILE`; of folder:PATH, fitted to its images.",
    ),
    "doctor": (
        "reporting",
        "Print versions, device, data sets found, what is missing and how to get it; or what is in a data set.",
    ),
    "slides": (
        "experiments",
        "Run the slide deck's rows by its own recipes, and set published beside measured; goes on where it stopped.",
    ),
    "claims": (
        "experiments",
        "Try the slide deck's nine claims: an experiment, an effect with its interval and a verdict for each.",
    ),
    "bench": (
        "experiments",
        "Measure the search on real learning curves, what these are made of, and the training loop.",
    ),
}
"""Each command's module in `kdsearch.cli`, and its help's first line."""


def loaded(name: str) -> Any:
    """Import a command's module and return the command, with its options."""
    found = getattr(import_module(f"kdsearch.cli.{COMMANDS[name][0]}"), name)
    if not isinstance(found, typer.Typer):
        own = typer.Typer(add_completion=False)
        own.command(name)(found)
        found = own
    return typer.main.get_command(found)


class _Deferred(TyperCommand):
    """A command whose module is imported when it is called, or asked for its own help."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        assert self.name is not None
        return loaded(self.name).make_context(info_name, args, parent=parent, **extra)


class _Commands(TyperGroup):
    def list_commands(self, ctx: object) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: object, cmd_name: str) -> Any:
        return _Deferred(cmd_name, callback=None, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None


app = typer.Typer(
    cls=_Commands,
    help="Find the small network to deploy: the Pareto front of accuracy against inference ratio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The `kdsearch` command: one clear line and exit code 1 for what the user can fix."""
    try:
        check_platform()
        app()
    except SystemExit as ended:
        from kdsearch.system import signals

        signals.leave(ended.code)
        raise
    except KdsearchError as error:
        fail(str(error))
    except Exception as error:
        from kdsearch.storage import trouble

        reason = trouble(error)
        if reason is None:
            raise
        if "malformed" in reason:  # sqlite's word for a damaged file
            fail(f"the storage must be whole: {reason}; restore a copy, or save the rest with `sqlite3 FILE .recover`")
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
