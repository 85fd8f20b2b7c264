"""Modules that are imported when a command first uses them, so that `--help` stays instant."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType


class _Finder(MetaPathFinder):
    """Find modules of this package as usual, and execute each at the first look at one of its names."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name.startswith("kdsearch.") else None
        if spec is None or spec.loader is None or spec.submodule_search_locations is not None:
            return None  # packages are light, and their submodules have to be found in them
        spec.loader = LazyLoader(spec.loader)
        return spec


@contextmanager
def lazy_imports() -> Iterator[None]:
    """Import modules lazily: `from kdsearch.room import module` inside; a name out of a module would load it at once.

    See `importlib.util.LazyLoader`; the statements stay ordinary ones, for readers and for type checkers.
    """
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
