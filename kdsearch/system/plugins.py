"""What other packages bring through entry points: looked up by name where used, and never in the way of others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from typing import Any

from kdsearch.errors import StudyFileError

KINDS = {"students": "student family", "teachers": "teacher family", "datasets": "data set", "costs": "cost"}
"""The kinds of plugins, each the group `kdsearch.KIND` of entry points, and what to call one."""


@dataclass(frozen=True)
class Plugin:
    """Something that a package offers.

    Attributes:
        kind: key of `KINDS`.
        name: to be used in a study file or as an option.
        package, version: that bring it.
        entry: to load it by.
    """

    kind: str
    name: str
    package: str
    version: str
    entry: metadata.EntryPoint

    @property
    def origin(self) -> str:
        """Its package and version."""
        return f"{self.package} {self.version}"


def offered(kind: str) -> list[Plugin]:
    """What is offered of a kind, by name and package; nothing is loaded."""
    found: dict[tuple[str, str], Plugin] = {}
    for entry in metadata.entry_points(group=f"kdsearch.{kind}"):
        package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("an unknown package", "")
        found[entry.name, package] = Plugin(kind, entry.name, package, version, entry)
    return [found[key] for key in sorted(found)]


def names(kind: str, own: Collection[str]) -> list[str]:
    """All names of a kind, ours and those of other packages."""
    return sorted({*own, *(plugin.name for plugin in offered(kind))})


def hidden(kind: str, own: Collection[str]) -> Iterator[str]:
    """A line for each plugin that has the name of one of ours and is not used for that reason."""
    for plugin in offered(kind):
        if plugin.name in own:
            yield f"the {KINDS[kind]} {plugin.name} of {plugin.origin} is not used: kdsearch has one of that name"


def find(kind: str, name: str, own: Mapping[str, str]) -> Any | None:
    """The object that a name stands for, ours ("module:attribute") before another package's; None: nobody knows it.

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
    """Imports a plugin and checks what can be checked of it without data.

    Raises:
        StudyFileError: it cannot be imported, or is not what its kind has to be.
    """
    try:
        found = plugin.entry.load()
    except Exception as error:  # what a package does when it is imported is its own
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
        remedy=f"mend or uninstall {plugin.package}",
    )
