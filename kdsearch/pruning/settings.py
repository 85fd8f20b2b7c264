"""Checks of the pruner's settings, before the first trial or, what depends on the study, before the first decision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from optuna import Study

from kdsearch.errors import KdsearchError


def is_whole(value: object) -> bool:
    """Return whether a value is a whole number, of Python or NumPy; 3.0 is one, True is not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return isinstance(value, Integral) or float(value).is_integer()


def whole(name: str, value: Any) -> int:
    """Return a setting as a whole number.

    Raises:
        ValueError: it is not one.
    """
    if not is_whole(value):
        raise ValueError(f"{name} must be a whole number (got {value!r})")
    return int(value)


def length(max_steps: Any) -> int | str | None:
    """Return the setting `max_steps`.

    Raises:
        ValueError: it is no whole number from 1, no name and not None.
    """
    if max_steps is None or isinstance(max_steps, str):
        return max_steps
    if not is_whole(max_steps) or max_steps < 1:
        rule = "max_steps must be a whole number, at least 1, or a parameter's name"
        raise ValueError(f"{rule} (got {max_steps!r}); leave it out for the longest curve seen")
    return int(max_steps)


def units(log: Any, reference: Any, ideal: Any) -> dict[str, Any]:
    """Return the settings `log`, `reference` and `ideal` by name, each None if it was.

    Raises:
        ValueError: `log` does not hold indices, `reference` not finite numbers, or `ideal` is not one.
    """
    return {
        "log": None if log is None else _indices(log),
        "reference": None if reference is None else _numbers(reference),
        "ideal": None if ideal is None else _finite("ideal must be a finite number", ideal),
    }


def check_fit(objectives: int, log: Sequence[int] | None, reference: Sequence[float] | None) -> None:
    """Check settings against the number of objectives.

    Raises:
        ValueError: an index in `log` is not that of an objective, or `reference` does not hold one for each.
    """
    for index in () if log is None else _indices(log):
        if index >= objectives:
            raise ValueError(
                f"log must hold indices of the {objectives} objectives, 0 to {objectives - 1} (got {index})"
            )
    if reference is not None and len(reference) != objectives:
        raise ValueError(f"reference must hold one for each of the {objectives} objectives (got {len(reference)})")


def refuse_one_objective(study: Study) -> None:
    """Refuse a study of one objective.

    Raises:
        KdsearchError: the study has fewer than two.
    """
    if len(study.directions) < 2:
        raise KdsearchError(
            "kdsearch prunes studies of two or more objectives",
            got=len(study.directions),
            remedy="use one of Optuna's own pruners with `trial.report` and `trial.should_prune`",
        )


def _indices(log: Any) -> tuple[int, ...]:
    rule = "log must hold indices of objectives, whole numbers from 0"
    listed = _listed(rule, log)
    for index in listed:
        if not is_whole(index) or index < 0:
            raise ValueError(f"{rule} (got {index!r})")
    return tuple(map(int, listed))


def _numbers(reference: Any) -> tuple[float, ...]:
    rule = "reference must hold finite numbers, one for each objective"
    return tuple(_finite(rule, value) for value in _listed(rule, reference))


def _listed(rule: str, values: Any) -> list[Any]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"{rule} (got {values!r}); give a list")
    return list(values)


def _finite(rule: str, value: Any) -> float:
    try:
        found = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{rule} (got {value!r})")
    return found
