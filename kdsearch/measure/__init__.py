"""Measurements of a network: accuracy, and costs, one file each.

Others use `accuracy`, `flops`, `gate`, `latency`, `onnx`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from kdsearch.errors import StudyFileError
from kdsearch.measure.accuracy import accuracy, hits
from kdsearch.records import Timing
from kdsearch.system import plugins

Cost = Callable[[nn.Module, nn.Module, Tensor], Timing]
"""Function from teacher, student and an input batch to the inference ratio."""

COSTS = {"latency": "kdsearch.measure.latency:measure", "flops": "kdsearch.measure.flops:measure"}

ONNX = "onnx"
"""Name of the cost in `onnx`. It is no `Cost`: an exported file includes preprocessing, so it takes raw bytes."""


def cost(name: str) -> Cost:
    """Return the cost of that name.

    Raises:
        StudyFileError: it is unknown, or its package is broken.
    """
    found: Cost | None = plugins.find("costs", name, COSTS)
    if found is None:
        known = ", ".join([*plugins.names("costs", COSTS), ONNX])
        remedy = f"choose one of {known}, or install the package that brings it"
        raise StudyFileError("--cost must be known", got=name, remedy=remedy)
    return found


def checked(timing: object, name: str) -> Timing:
    """Return the result of a cost after checking that it is an inference ratio.

    Raises:
        StudyFileError: it is not one.
    """
    if isinstance(timing, Timing) and 0 < timing.low <= timing.ratio <= timing.high < math.inf:
        return timing
    raise StudyFileError(
        f"the cost {name} must return a Timing with 0 < low <= ratio <= high",
        got=" ".join(str(timing).split())[:200],
        remedy="fix the package that brings it, or choose another --cost",
    )


__all__ = ["COSTS", "ONNX", "Cost", "accuracy", "checked", "cost", "hits"]
