"""Ratio of counted operations: a deterministic stand-in for time, for tests and simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdsearch.records import Timing

Shape = Sequence[int]


def _recurrent(inputs: Shape, weights: Sequence[Shape]) -> int:
    """Count a recurrent layer: each weight once for each step of each sequence."""
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


FUSED = {  # layers that run as one kernel, which torch's counter does not know
    torch.ops.aten.mkldnn_rnn_layer: lambda inputs, *weights, out_shape, **_: _recurrent(inputs, weights[:2]),
    torch.ops.aten._cudnn_rnn: lambda inputs, weights, *_, out_shape, **__: _recurrent(inputs, weights),
}


@contextmanager
def _unfused() -> Iterator[None]:
    """Run attention as matrix products, which the counter sees, and not as one kernel."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def count(network: nn.Module, batch: Tensor) -> int:
    """Count the operations of a forward pass, a multiply-add as 2; only of matrix products and convolutions."""
    network.eval()
    with torch.no_grad(), _unfused(), FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
        network(batch)
    return int(counter.get_total_flops())


def measure(teacher: nn.Module, student: nn.Module, batch: Tensor) -> Timing:
    """Return the teacher's operations / the student's; exact, so the interval is a point."""
    of_teacher, of_student = count(teacher, batch[:1]), count(student, batch[:1])
    ratio = of_teacher / of_student
    return Timing(ratio, ratio, ratio, of_teacher, of_student, batch=1, pairs=0, kind="flops")
