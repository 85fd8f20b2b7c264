"""Kernels, bytes and operations of a call, counted from torch's dispatcher: a bound on its time without the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# of an H100 SXM by its data sheet (memory, dense bfloat16) and by what replayed graphs of small kernels take
BYTES_A_SECOND, OPERATIONS_A_SECOND, SECONDS_A_KERNEL = 3.35e12, 990e12, 2.5e-6

KINDS = {
    "convolution": "convolution",
    "batch_norm": "batch norm",
    "fused_": "optimiser",
    "_copy": "casts",
    "foreach_copy_": "casts",
}
NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach")
MARKS = "_record_function"  # the profiler's, without a kernel


@dataclass(frozen=True)
class Op:
    """A call of an operator that runs kernels.

    Attributes:
        name: the operator's.
        kernels: that CUDA runs for it at least: 1, of a convolution's backward pass 1 for each gradient.
        bytes: of the tensors that it reads and writes, each once.
        flops: a multiply-add as 2; only of matrix products and convolutions.
    """

    name: str
    kernels: int
    bytes: int
    flops: int

    @property
    def kind(self) -> str:
        """ "convolution", "batch norm", "optimiser", "casts" or "rest"."""
        return next((kind for part, kind in KINDS.items() if part in self.name), "rest")

    @property
    def seconds(self) -> float:
        """Least time on an H100: of its launches, its bytes or its operations, whichever is the longest."""
        work = max(self.bytes / BYTES_A_SECOND, self.flops / OPERATIONS_A_SECOND)
        return max(self.kernels * SECONDS_A_KERNEL, work)


class _Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        views = [each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns]
        if name in NOTHING or name.startswith(MARKS) or (views and all(views)):
            return out
        seen = {id(each): each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)}
        size = sum(each.numel() * each.element_size() for each in seen.values())
        count = flop_registry.get(func._overloadpacket)
        flops = int(count(*args, **kwargs, out_val=out)) if count is not None else 0
        kernels = sum(args[-1][:2]) if name == "convolution_backward" else 1
        self.ops.append(Op(name, kernels, size, flops))
        return out


def log(call: Callable[[], object]) -> list[Op]:
    """Return the operators that a call dispatches, backward passes included, in their order."""
    seen = _Log()
    with seen:
        call()
    return seen.ops


def by_kind(ops: Iterable[Op]) -> Counter[str]:
    """Return the number of kernels of each kind."""
    found: Counter[str] = Counter()
    for op in ops:
        found[op.kind] += op.kernels
    return found


def seconds(ops: Iterable[Op]) -> float:
    """Return the least time of operators on an H100."""
    return sum(op.seconds for op in ops)
