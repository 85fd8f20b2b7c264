"""Modules that are imported when a command first uses them, so that `--help` stays instant."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any


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
