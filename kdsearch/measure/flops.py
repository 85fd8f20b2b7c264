"""Ratio of counted operations: a deterministic stand-in for time, for tests and simulation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdsearch.records import Timing


def count(network: nn.Module, batch: Tensor) -> int:
    """Count the operations of a forward pass, a multiply-add as 2; only of matrix products and convolutions."""
    network.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(batch)
    return int(counter.get_total_flops())


def measure(teacher: nn.Module, student: nn.Module, batch: Tensor) -> Timing:
    """Return the teacher's operations / the student's; exact, so the interval is a point."""
    of_teacher, of_student = count(teacher, batch[:1]), count(student, batch[:1])
    ratio = of_teacher / of_student
    return Timing(ratio, ratio, ratio, of_teacher, of_student, batch=1, pairs=0, kind="flops")
