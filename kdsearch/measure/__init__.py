"""What is measured of a network: accuracy, and one file a cost."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from kdsearch.measure import flops, latency
from kdsearch.measure.accuracy import accuracy, logits
from kdsearch.records import Timing

Cost = Callable[[nn.Module, nn.Module, Tensor], Timing]
"""From teacher, student and a batch of input to the inference ratio."""

COSTS: dict[str, Cost] = {"latency": latency.measure, "flops": flops.measure}

COST_NAMES = (*COSTS, "onnx")
"""What `--cost` may be: "onnx" (see `deployed`) is measured from bytes to logits, for the file holds both."""

__all__ = ["COSTS", "COST_NAMES", "Cost", "accuracy", "logits"]
