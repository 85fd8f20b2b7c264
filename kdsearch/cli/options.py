"""What commands share: lazy imports, so that `--help` stays instant, options, and options made of a dataclass."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints

import typer

Storage = Annotated[
    str,
    typer.Option(
        envvar="OPTUNA_STORAGE", help="An Optuna storage URL, journal:PATH or grpc://HOST:PORT.", show_envvar=True
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the study (default: the only one in the storage).")]
DataDir = Annotated[
    str | None,
    typer.Option(envvar="KDSEARCH_DATA_DIR", help="Where data sets lie or are downloaded to (default: cache folder)."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    str,
    typer.Option(help="Convolutions train in float32, bfloat16 or auto: the study's own, in a new one the faster."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
PlotlyJs = Annotated[str, typer.Option(help="inline (one offline page) or cdn (a small one).")]
ReportPath = Annotated[Path | None, typer.Option(help="Where the report goes (default: reports/NAME.html).")]


def takes(*kinds: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of dataclasses whose fields are `search.run_options.option`.

    The command is called with an instance of each, in their order, before its own options.
    """

    def give(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[len(kinds) :]
        made = [_parameter(kind, field) for kind in kinds for field in dataclasses.fields(kind)]
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*made, *own)]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            filled = [
                kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(kind)}) for kind in kinds
            ]
            command(*filled, **given)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return give


def _parameter(kind: type[Any], field: dataclasses.Field[Any]) -> inspect.Parameter:
    said = field.metadata
    wanted = get_type_hints(kind)[field.name]
    names = [f"--{field.name.replace('_', '-')}"] if wanted is bool else []  # without its --no-
    annotation: Any = Annotated[wanted, typer.Option(*names, help=said["help"], min=said["least"], envvar=said["env"])]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)


class _Module:
    """Stand in for a module: the first look at one of its names imports it.

    It does not lie in `sys.modules`, as the modules of `importlib.util.LazyLoader` do: torch's import looks at all that
    lie there, which would load them in the midst of it.
    """

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(import_module(self._name), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(import_module(self._name), name)


@contextmanager
def lazy_imports() -> Iterator[None]:
    """Make `from kdsearch.room import module` lazy inside; what is imported so has to be a module.

    The statements stay ordinary ones, for readers and for type checkers.
    """
    imported = builtins.__import__

    def stand_in(package: str, *where: Any) -> Any:
        if package.partition(".")[0] != "kdsearch":
            return imported(package, *where)
        _, _, names, _ = where  # of `from package import names`
        return SimpleNamespace(**{name: _Module(f"{package}.{name}") for name in names})

    builtins.__import__ = stand_in  # type: ignore[assignment]
    try:
        yield
    finally:
        builtins.__import__ = imported
