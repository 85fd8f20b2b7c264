"""Plugins of other packages, found through entry points and loaded only when they are used."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from typing import Any

from kdsearch.errors import StudyFileError

# kinds of plugins, each the entry-point group `kdsearch.KIND`, and what to call one
KINDS = {"students": "student family", "teachers": "teacher family", "datasets": "data set", "costs": "cost"}


@dataclass(frozen=True)
class Plugin:
    """A plugin that an installed package offers."""

    kind: str  # key of `KINDS`
    name: str  # for study files and options
    package: str
    origin: str  # package and version
    entry: metadata.EntryPoint


def offered(kind: str) -> list[Plugin]:
    """Return the plugins of a kind, sorted by name and package, without loading them."""
    found: dict[tuple[str, str], Plugin] = {}
    for entry in metadata.entry_points(group=f"kdsearch.{kind}"):
        package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("an unknown package", "")
        found[entry.name, package] = Plugin(kind, entry.name, package, f"{package} {version}", entry)
    return [found[key] for key in sorted(found)]


def names(kind: str, own: Collection[str]) -> list[str]:
    """Return all names of a kind, built-in ones and plugins, sorted."""
    return sorted({*own, *(plugin.name for plugin in offered(kind))})


def hidden(kind: str, own: Collection[str]) -> Iterator[str]:
    """Yield a line for each plugin that is not used because a built-in one has its name."""
    for plugin in offered(kind):
        if plugin.name in own:
            yield f"the {KINDS[kind]} {plugin.name} of {plugin.origin} is not used: kdsearch has one of that name"


def find(kind: str, name: str, own: Mapping[str, str]) -> Any | None:
    """Return the object of a name, built-in ("module:attribute") or of a plugin; None if the name is unknown.

    Raises:
        StudyFileError: several packages offer it, or its package is broken.
    """
    if name in own:
        module, _, attribute = own[name].partition(":")
        return getattr(import_module(module), attribute)
    return _brought(kind, name)


@cache
def _brought(kind: str, name: str) -> Any | None:
    named = [plugin for plugin in offered(kind) if plugin.name == name]
    if len(named) > 1:
        raise StudyFileError(
            f"one package only may offer the {KINDS[kind]} {name}",
            got=", ".join(plugin.origin for plugin in named),
            remedy="uninstall the others",
        )
    return load(named[0]) if named else None


def load(plugin: Plugin) -> Any:
    """Import a plugin and check what can be checked without data.

    Raises:
        StudyFileError: it cannot be imported, or does not meet its kind's contract.
    """
    try:
        found = plugin.entry.load()
    except Exception as error:  # a package may raise anything when it is imported
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _broken(plugin, f"be importable: {reason}") from None
    if plugin.kind != "students":
        if not callable(found):
            raise _broken(plugin, f"be a function, not a {type(found).__name__}")
        return found
    dimensions = getattr(found, "dimensions", None)
    if not isinstance(dimensions, tuple) or not all(isinstance(key, str) for key in dimensions):
        raise _broken(plugin, "have `dimensions`, a tuple of names")
    if not callable(getattr(found, "build", None)):
        raise _broken(plugin, "have a function `build`")
    return found


def _broken(plugin: Plugin, rule: str) -> StudyFileError:
    return StudyFileError(
        f"the {KINDS[plugin.kind]} {plugin.name} must {rule}",
        got=f"{plugin.entry.value} of {plugin.origin}",
        remedy=f"fix or uninstall {plugin.package}",
    )
