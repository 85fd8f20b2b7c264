"""Layers on a CPU, computed faster than torch does: the same numbers, but for rounding.

oneDNN, which computes torch's convolutions, works along a map's rows, and slows down where rows are short: so in the
last stages of a ResNet on 32x32 images. There the product of what each place sees (im2col; Chellapilla, Puri, Simard
2006) with the weight is up to a hundred times as fast, also because taps that see nothing but padding are left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch.system import machine

# Measured with torch 2.14.1 at batches of 16 to 512, with AMX and with oneDNN limited to AVX-512 and to AVX2.
FEW_PLACES = 4  # of an output map: then all three products are faster, if the weight is large; with one place always
FEW_PLACES_AMX = 16  # in bfloat16 with AMX: then the product to the weight's gradient is faster, forward is as fast
LARGE, LARGE_AMX = 2**19, 2**16  # values of a weight
KINDS = (torch.float32, torch.bfloat16)


class Axis(NamedTuple):
    """One axis of a convolution.

    Attributes:
        size, out: lengths of the input and of the output.
        stride, padding: of the layer.
        first, end: the kernel's taps that see any input lie in range(first, end); others see padding alone.
    """

    size: int
    out: int
    stride: int
    padding: int
    first: int
    end: int

    @property
    def taps(self) -> int:
        return self.end - self.first

    @property
    def inside(self) -> bool:
        """Whether these taps never see padding."""
        return self.padding <= self.first and self.stride * (self.out - 1) + self.end <= self.size + self.padding

    @property
    def patch(self) -> bool:
        """Whether the output has one place, which sees each place of the input by one tap."""
        return self.out == 1 and self.inside and self.taps == self.size

    def met(self, tap: int) -> slice:
        """Return the places of the padded input that a tap meets, one for each place of the output."""
        return slice(tap, tap + self.stride * (self.out - 1) + 1, self.stride)


def seeing(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> list[int]:
    """Return the taps of a kernel, along one axis, that see any of an input of this size."""
    starts = range(-padding, size + padding - dilation * (kernel - 1), stride)
    return [tap for tap in range(kernel) if any(0 <= start + dilation * tap < size for start in starts)]


@cache
def axis(size: int, kernel: int, stride: int, padding: int) -> Axis:
    """Return an axis of a convolution; without taps where there is no output."""
    out = max(0, (size + 2 * padding - kernel) // stride + 1)
    taps = seeing(size, kernel, stride, padding) or [0]
    return Axis(size, out, stride, padding, taps[0], taps[-1] + 1)


def _columns(images: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Return what each place of the output sees: (batch * places, taps * channels)."""
    spread, top, left = images.permute(0, 2, 3, 1), rows.first, columns.first
    if rows.inside and columns.inside:
        top, left = top - rows.padding, left - columns.padding
    else:
        spread = F.pad(spread, (0, 0, columns.padding, columns.padding, rows.padding, rows.padding))
    batch, row, column, channel = spread.stride()
    seen = spread.as_strided(
        (len(images), rows.out, columns.out, rows.taps, columns.taps, images.shape[1]),
        (batch, row * rows.stride, column * columns.stride, row, column, channel),
        spread.storage_offset() + top * row + left * column,
    )
    return seen.reshape(len(images) * rows.out * columns.out, -1)


def _gathered(seen: Tensor, channels: int, rows: Axis, columns: Axis) -> Tensor:
    """Return (batch, channels, height, width): the sum at each place of the input; `_columns` transposed."""
    if rows.patch and columns.patch:
        return seen.view(-1, rows.size, columns.size, channels).permute(0, 3, 1, 2)
    parts = seen.view(-1, rows.out, columns.out, rows.taps, columns.taps, channels)
    padded = (len(parts), rows.size + 2 * rows.padding, columns.size + 2 * columns.padding, channels)
    total = seen.new_zeros(padded, dtype=torch.promote_types(seen.dtype, torch.float32))
    for row in range(rows.taps):
        for column in range(columns.taps):
            met = total[:, rows.met(rows.first + row), columns.met(columns.first + column)]
            met += parts[:, :, :, row, column]
    inner = total[:, rows.padding : rows.padding + rows.size, columns.padding : columns.padding + columns.size]
    return inner.to(seen.dtype).permute(0, 3, 1, 2)


def _taps(weight: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Return a view of the taps that see any input: (output channels, rows, columns, input channels)."""
    return weight.permute(0, 2, 3, 1)[:, rows.first : rows.end, columns.first : columns.end]


class _Convolution(torch.autograd.Function):
    """A convolution without bias; forward and to the input as products where `few`, to the weight always."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, images: Tensor, weight: Tensor, rows: Axis, columns: Axis, few: bool
    ) -> Tensor:
        ctx.axes, ctx.few = (rows, columns), few
        if not few:
            ctx.save_for_backward(images, weight)
            strides, paddings = (rows.stride, columns.stride), (rows.padding, columns.padding)
            return F.conv2d(images, weight, stride=strides, padding=paddings)
        seen = _columns(images, rows, columns)
        ctx.save_for_backward(seen, weight)
        shape = len(images), len(weight), rows.out, columns.out
        maps = torch.empty(shape, dtype=images.dtype, memory_format=torch.channels_last)  # no view: it may be changed
        flat = maps.permute(0, 2, 3, 1).view(-1, len(weight))
        torch.mm(seen, _taps(weight, rows, columns).reshape(len(weight), -1).t(), out=flat)
        return maps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        kept, weight = ctx.saved_tensors
        rows, columns = ctx.axes
        flat = gradient.permute(0, 2, 3, 1).reshape(-1, len(weight))
        to_images = to_weight = None
        if ctx.needs_input_grad[0] and ctx.few:
            seen = flat @ _taps(weight, rows, columns).reshape(len(weight), -1)
            to_images = _gathered(seen, weight.shape[1], rows, columns)
        elif ctx.needs_input_grad[0]:
            strides, paddings = (rows.stride, columns.stride), (rows.padding, columns.padding)
            to_images = torch.ops.aten.convolution_backward(
                gradient, kept, weight, None, strides, paddings, (1, 1), False, (0, 0), 1, (True, False, False)
            )[0]
        if ctx.needs_input_grad[1]:
            seen = kept if ctx.few else _columns(kept, rows, columns)
            taps = (flat.t().contiguous() @ seen).view(len(weight), rows.taps, columns.taps, -1)
            height, width = weight.shape[2:]
            if taps.shape[1:3] != (height, width):  # what sees padding alone has no gradient
                taps = F.pad(taps, (0, 0, columns.first, width - columns.end, rows.first, height - rows.end))
            to_weight = taps.permute(0, 3, 1, 2)
        return to_images, to_weight, None, None, None


@cache
def _has_amx() -> bool:
    return "amx_bf16" in machine.bf16_instructions()


def conv2d(images: Tensor, weight: Tensor, rows: Axis, columns: Axis) -> Tensor | None:
    """Convolve images on a CPU as matrix products; None where torch's convolution is expected to be as fast.

    Args:
        images: (batch, channels, height, width).
        weight: (output channels, channels, *kernel), of the same type.
        rows, columns: of the convolution.

    Returns:
        (batch, output channels, rows.out, columns.out), channels last.
    """
    places, values = rows.out * columns.out, weight.numel()
    if min(images.numel(), places, values) == 0:
        return None
    unseen = (rows.taps, columns.taps) != weight.shape[2:]
    if unseen and places > FEW_PLACES_AMX:
        return _cropped(images, weight, rows, columns)
    amx = images.dtype == torch.bfloat16 and _has_amx()
    few = unseen or places == 1 or (places <= FEW_PLACES and values >= (LARGE_AMX if amx else LARGE))
    learns = torch.is_grad_enabled() and weight.requires_grad
    if not few and not (learns and amx and places <= FEW_PLACES_AMX and values >= LARGE_AMX):
        return None
    result: Tensor = _Convolution.apply(images, weight, rows, columns, few)
    return result


def _cropped(images: Tensor, weight: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Return torch's convolution with the taps that see any input: oneDNN leaves the others' gradients unwritten."""
    high, wide = weight.shape[2:]
    ends = (columns.first, wide - columns.end), (rows.first, high - rows.end)
    around = [one.padding - cut for one, cuts in zip((columns, rows), ends, strict=True) for cut in cuts]
    seeing = weight[:, :, rows.first : rows.end, columns.first : columns.end]
    return F.conv2d(F.pad(images, around), seeing, stride=(rows.stride, columns.stride))


def lie_last(images: Tensor) -> bool:
    """Return whether images or a weight are laid out channels last, and not channels first as well."""
    return not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)


def _forward(layer: nn.Conv2d, input: Tensor) -> Tensor:  # noqa: A002 -- torch's name
    """Compute a layer's output, with the types that autocast gives it."""
    weight, result = layer.weight, None
    autocast = torch.is_autocast_enabled("cpu")
    kind = torch.get_autocast_dtype("cpu") if autocast else weight.dtype
    if input.ndim == 4 and {input.dtype, weight.dtype, kind} <= {*KINDS} and (autocast or input.dtype == kind):
        sizes = zip(input.shape[-2:], weight.shape[2:], layer.stride, layer.padding, strict=True)
        rows, columns = (axis(*one) for one in sizes)  # type: ignore[arg-type]
        # channels first torch's output is so, too, and a network may view it so; a map of one place is both
        if rows.out * columns.out == 1 or lie_last(input) or lie_last(weight):
            result = conv2d(input.to(kind), weight.to(kind), rows, columns)
    if result is None:
        return nn.Conv2d.forward(layer, input)
    return result if layer.bias is None else result + layer.bias.to(result.dtype)[:, None, None]


def _on_cpu(module: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in module.parameters())


def _fits(module: nn.Module) -> bool:
    """Return whether a layer's convolutions over small maps may be matrix products."""
    return (
        type(module) is nn.Conv2d  # a subclass may use its weight otherwise
        and "forward" not in vars(module)
        and _on_cpu(module)
        and module.groups == 1
        and module.dilation == (1, 1)
        and isinstance(module.stride, tuple)
        and isinstance(module.padding, tuple)  # not "same", and no number that its user set
        and module.padding_mode == "zeros"
    )


class OnCpu(ABC):
    """Base of modules that have a faster way to compute the numbers of their forward pass, and gradients, on a CPU."""

    @abstractmethod
    def on_cpu(self, images: Tensor) -> Tensor:
        """Return what the forward pass does."""


def quick(network: nn.Module) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Return a network's layers that are faster by another forward pass, with it, where they are on a CPU.

    Those are convolutions, which over small maps become matrix products, but for those with groups, dilation or other
    padding than zeros, and modules that are `OnCpu`. The numbers are the same but for rounding.
    """
    found: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _fits(module):
            found.append((module, partial(_forward, module)))
        elif isinstance(module, OnCpu) and "forward" not in vars(module) and _on_cpu(module):
            found.append((module, module.on_cpu))
    return found


@contextmanager
def faster(network: nn.Module) -> Iterator[None]:
    """Compute a network's `quick` layers so within a context.

    Never around a timing: a ratio is that of the plain network. A copy made within keeps the faster layers.
    """
    layers = quick(network)
    for layer, forward in layers:
        layer.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, _ in layers:
            vars(layer).pop("forward", None)
