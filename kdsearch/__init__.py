"""kdsearch finds the small network to deploy: the Pareto front of accuracy against inference ratio.

The public names are imported when they are first used, so that `import kdsearch` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "KdsearchError": "kdsearch.errors",
    "ParetoPruner": "kdsearch.pruning.pruner",
    "optimize": "kdsearch.search.study",
    "report": "kdsearch.pruning.pruner",
    "should_prune": "kdsearch.pruning.pruner",
    "should_stop": "kdsearch.pruning.pruner",
    "write_report": "kdsearch.reporting.pages.study_page",
}

__all__ = [
    "KdsearchError", "ParetoPruner", "__version__", "optimize", "report", "should_prune", "should_stop", "write_report",
]  # fmt: skip

if TYPE_CHECKING:
    from kdsearch.errors import KdsearchError
    from kdsearch.pruning.pruner import ParetoPruner, report, should_prune, should_stop
    from kdsearch.reporting.pages.study_page import write_report
    from kdsearch.search.study import optimize


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kdsearch' has no attribute {name!r}")
    if name != "KdsearchError":
        import_module("kdsearch.errors").check_platform()
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
