"""Batch norm and max pooling in training on a GPU, for bfloat16 images laid out channels last, as Triton kernels.

torch's own kernels for these layers take half of a small student's step there: on an H200, of the 1.07 ms that the
kernels of row c5's step take, batch norm had 0.39 and max pooling 0.10 (torch 2.11, which does not use cuDNN's batch
norm in bfloat16).
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-any-return"
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

ROWS, CHANNELS = 128, 32  # of a tile
PARTS = 64  # at most, of the rows, each with sums of its own
PROGRAMS = 512  # about, of a kernel that writes images
POOLED = 1024  # values of a program that pools
LARGEST_WINDOW = 11  # its places fit in a byte
TOLERANCE = 2**-5  # of `check`, relative: bfloat16's rounding is 2^-8
LARGEST = 2**31  # values of a tensor that an int32 can count
SIZES = ("rows", "parts", "count", "height", "width", "pooled_height", "pooled_width")  # one compilation for all


@triton.jit(do_not_specialize=SIZES)
def _moments(images, means, squares, rows, channels, per, tile_rows: tl.constexpr, tile_channels: tl.constexpr):
    """Mean and sum of squared deviations of each part of the rows, by channel.

    Deviations are summed from the part's first row, so that a mean far from 0 costs no digits.
    """
    part = tl.program_id(0)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    there = channel < channels
    first = part * per
    last = tl.minimum(first + per, rows)
    origin = tl.load(images + first * channels + channel, mask=there, other=0.0).to(tl.float32)
    total = tl.zeros([tile_channels], tl.float32)
    square = tl.zeros([tile_channels], tl.float32)
    for start in range(first, last, tile_rows):
        row = start + tl.arange(0, tile_rows)
        inside = (row < last)[:, None] & there[None, :]
        value = tl.load(images + row[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        off = tl.where(inside, value - origin[None, :], 0.0)
        total += tl.sum(off, 0)
        square += tl.sum(off * off, 0)
    mean = total / (last - first)
    tl.store(means + part * channels + channel, origin + mean, mask=there)
    tl.store(squares + part * channels + channel, square - total * mean, mask=there)


@triton.jit(do_not_specialize=SIZES)
def _normalise(
    images, means, squares, weight, bias, running_mean, running_var, out, saved_mean, saved_scale,
    rows, channels, per, parts, per_program, momentum, eps,
    most_parts: tl.constexpr, tile_rows: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Merges the parts' moments (Chan's formula), and normalises the rows of a program."""
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    there = channel < channels
    part = tl.arange(0, most_parts)
    known = (part < parts)[:, None] & there[None, :]
    sums_at = part[:, None] * channels + channel[None, :]
    mean_of = tl.load(means + sums_at, mask=known, other=0.0)
    square_of = tl.load(squares + sums_at, mask=known, other=0.0)
    count_of = tl.maximum(tl.minimum(rows - part * per, per), 0).to(tl.float32)[:, None]
    mean = tl.sum(mean_of * count_of, 0) / rows
    off = mean_of - mean[None, :]
    square = tl.sum(tl.where(known, square_of + count_of * off * off, 0.0), 0)
    scale = 1.0 / tl.sqrt(square / rows + eps)
    if tl.program_id(0) == 0:
        tl.store(saved_mean + channel, mean, mask=there)
        tl.store(saved_scale + channel, scale, mask=there)
        old_mean = tl.load(running_mean + channel, mask=there, other=0.0)
        old_var = tl.load(running_var + channel, mask=there, other=0.0)
        tl.store(running_mean + channel, old_mean + momentum * (mean - old_mean), mask=there)
        tl.store(running_var + channel, old_var + momentum * (square / (rows - 1) - old_var), mask=there)
    factor = scale * tl.load(weight + channel, mask=there, other=0.0)
    shift = tl.load(bias + channel, mask=there, other=0.0) - mean * factor
    first = tl.program_id(0) * per_program
    for start in range(first, tl.minimum(first + per_program, rows), tile_rows):
        row = start + tl.arange(0, tile_rows)
        inside = (row < rows)[:, None] & there[None, :]
        place = row[:, None] * channels + channel[None, :]
        value = tl.load(images + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, value * factor[None, :] + shift[None, :], mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _gradient_sums(
    images, grads, saved_mean, saved_scale, of_grad, of_product, rows, channels, per,
    tile_rows: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Sums of each part of the rows, by channel: of gradients, and of gradients times normalised values."""
    part = tl.program_id(0)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    there = channel < channels
    mean = tl.load(saved_mean + channel, mask=there, other=0.0)
    scale = tl.load(saved_scale + channel, mask=there, other=0.0)
    first = part * per
    last = tl.minimum(first + per, rows)
    total = tl.zeros([tile_channels], tl.float32)
    product = tl.zeros([tile_channels], tl.float32)
    for start in range(first, last, tile_rows):
        row = start + tl.arange(0, tile_rows)
        inside = (row < last)[:, None] & there[None, :]
        place = row[:, None] * channels + channel[None, :]
        value = tl.load(images + place, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grads + place, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(grad, 0)
        product += tl.sum(grad * (value - mean[None, :]), 0)
    tl.store(of_grad + part * channels + channel, total, mask=there)
    tl.store(of_product + part * channels + channel, product * scale, mask=there)


@triton.jit(do_not_specialize=SIZES)
def _gradient(
    images, grads, saved_mean, saved_scale, weight, of_grad, of_product, out, of_weight, of_bias,
    rows, channels, parts, per_program,
    most_parts: tl.constexpr, tile_rows: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Gradients of weight and bias, and of the images in the rows of a program."""
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    there = channel < channels
    part = tl.arange(0, most_parts)
    known = (part < parts)[:, None] & there[None, :]
    sums_at = part[:, None] * channels + channel[None, :]
    total = tl.sum(tl.load(of_grad + sums_at, mask=known, other=0.0), 0)
    product = tl.sum(tl.load(of_product + sums_at, mask=known, other=0.0), 0)
    if tl.program_id(0) == 0:
        tl.store(of_bias + channel, total, mask=there)
        tl.store(of_weight + channel, product, mask=there)
    mean = tl.load(saved_mean + channel, mask=there, other=0.0)
    scale = tl.load(saved_scale + channel, mask=there, other=0.0)
    factor = scale * tl.load(weight + channel, mask=there, other=0.0)
    slope = scale * product / rows
    level = total / rows
    first = tl.program_id(0) * per_program
    for start in range(first, tl.minimum(first + per_program, rows), tile_rows):
        row = start + tl.arange(0, tile_rows)
        inside = (row < rows)[:, None] & there[None, :]
        place = row[:, None] * channels + channel[None, :]
        value = tl.load(images + place, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grads + place, mask=inside, other=0.0).to(tl.float32)
        off = (value - mean[None, :]) * slope[None, :]
        tl.store(out + place, (grad - level[None, :] - off) * factor[None, :], mask=inside)


class _Cut(NamedTuple):
    """How a batch of images, as rows of channels, is cut among the programs of a kernel.

    Attributes:
        rows, channels: of the batch: a row is a pixel.
        parts, per: number of parts that have sums of their own, and the rows of each.
        per_program: rows of a program that writes images.
        across: tiles that cover the channels.
        reading, writing: grids of a kernel that sums the parts and of one that writes images.
    """

    rows: int
    channels: int
    parts: int
    per: int
    per_program: int
    across: int

    @classmethod
    def of(cls, images: Tensor) -> _Cut:
        channels = images.shape[1]
        rows = images.numel() // channels
        across = triton.cdiv(channels, CHANNELS)
        per = ROWS * triton.cdiv(rows, ROWS * PARTS)
        per_program = ROWS * triton.cdiv(rows * across, ROWS * PROGRAMS)
        return cls(rows, channels, triton.cdiv(rows, per), per, per_program, across)

    @property
    def reading(self) -> tuple[int, int]:
        return self.parts, self.across

    @property
    def writing(self) -> tuple[int, int]:
        return triton.cdiv(self.rows, self.per_program), self.across

    def sums(self, images: Tensor) -> Tensor:
        return images.new_empty(2, self.parts, self.channels, dtype=torch.float32)


def _check_once() -> None:
    """Refuse a backward pass that is to be differentiated: its result would be taken for a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError("our kernels have no second derivative: train such a network with --precision float32")


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, momentum: float, eps: float
    ) -> Tensor:
        cut = _Cut.of(images)
        moments = cut.sums(images)
        saved = images.new_empty(2, cut.channels, dtype=torch.float32)
        out = torch.empty_like(images)
        with torch.cuda.device_of(images):  # Triton launches on the current device
            _moments[cut.reading](
                images, *moments, cut.rows, cut.channels, cut.per, tile_rows=ROWS, tile_channels=CHANNELS
            )
            _normalise[cut.writing](
                images, *moments, weight, bias, mean, var, out, *saved,
                cut.rows, cut.channels, cut.per, cut.parts, cut.per_program, momentum, eps,
                most_parts=PARTS, tile_rows=ROWS, tile_channels=CHANNELS,
            )  # fmt: skip
        ctx.save_for_backward(images, weight, saved)
        return out

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _check_once()
        images, weight, saved = ctx.saved_tensors
        grads = grads.contiguous(memory_format=torch.channels_last)
        cut = _Cut.of(images)
        sums = cut.sums(images)
        of_both = torch.empty_like(saved)
        out = torch.empty_like(images)
        with torch.cuda.device_of(images):
            _gradient_sums[cut.reading](
                images, grads, *saved, *sums, cut.rows, cut.channels, cut.per, tile_rows=ROWS, tile_channels=CHANNELS
            )
            _gradient[cut.writing](
                images, grads, *saved, weight, *sums, out, *of_both,
                cut.rows, cut.channels, cut.parts, cut.per_program,
                most_parts=PARTS, tile_rows=ROWS, tile_channels=CHANNELS,
            )  # fmt: skip
        return out, of_both[0], of_both[1], None, None, None, None


@triton.jit(do_not_specialize=SIZES)
def _pool(
    images, out, chosen, count, channels, height, width, pooled_height, pooled_width,
    kernel: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """The largest value of each window and its place there; the first one of equals, NaN above all, as torch."""
    index = tl.program_id(0) * size + tl.arange(0, size)
    inside = index < count
    channel = index % channels
    pixel = index // channels
    column = pixel % pooled_width
    row = (pixel // pooled_width) % pooled_height
    image = pixel // (pooled_width * pooled_height)
    best = tl.full([size], float("-inf"), tl.float32)
    above = tl.maximum(padding - row * stride, 0)
    left = tl.maximum(padding - column * stride, 0)
    place = above * kernel + left  # the first one inside, for windows of -inf alone
    for step in tl.static_range(kernel * kernel):
        y = row * stride - padding + step // kernel
        x = column * stride - padding + step % kernel
        seen = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        source = ((image * height + y) * width + x) * channels + channel
        value = tl.load(images + source, mask=seen, other=float("-inf")).to(tl.float32)
        better = seen & ((value > best) | (value != value))
        best = tl.where(better, value, best)
        place = tl.where(better, step, place)
    tl.store(out + index, best, mask=inside)
    tl.store(chosen + index, place.to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _unpool(
    grads, chosen, out, count, channels, height, width, pooled_height, pooled_width,
    kernel: tl.constexpr, stride: tl.constexpr, padding: tl.constexpr, windows: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """Each pixel's gradient: of the windows that it is in, those that chose it."""
    index = tl.program_id(0) * size + tl.arange(0, size)
    inside = index < count
    channel = index % channels
    pixel = index // channels
    x = pixel % width + padding
    y = (pixel // width) % height + padding
    image = pixel // (width * height)
    total = tl.zeros([size], tl.float32)
    for step in tl.static_range(windows * windows):
        row = y // stride - step // windows
        column = x // stride - step % windows
        down = y - row * stride
        along = x - column * stride
        seen = inside & (row >= 0) & (row < pooled_height) & (column >= 0) & (column < pooled_width)
        seen = seen & (down < kernel) & (along < kernel)
        source = ((image * pooled_height + row) * pooled_width + column) * channels + channel
        place = tl.load(chosen + source, mask=seen, other=-1).to(tl.int32)
        grad = tl.load(grads + source, mask=seen, other=0.0).to(tl.float32)
        total += tl.where(place == down * kernel + along, grad, 0.0)
    tl.store(out + index, total, mask=inside)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: int, stride: int, padding: int) -> Tensor:  # type: ignore[override]
        count, channels, height, width = images.shape
        pooled = [(side + 2 * padding - kernel) // stride + 1 for side in (height, width)]
        out = torch.empty(
            (count, channels, *pooled), dtype=images.dtype, device=images.device, memory_format=torch.channels_last
        )
        chosen = torch.empty(out.numel(), dtype=torch.int8, device=images.device)
        with torch.cuda.device_of(images):
            _pool[(triton.cdiv(out.numel(), POOLED),)](
                images, out, chosen, out.numel(), channels, height, width, *pooled,
                kernel=kernel, stride=stride, padding=padding, size=POOLED,
            )  # fmt: skip
        ctx.save_for_backward(chosen)
        ctx.form = images.shape, kernel, stride, padding
        return out

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _check_once()
        (chosen,) = ctx.saved_tensors
        shape, kernel, stride, padding = ctx.form
        grads = grads.contiguous(memory_format=torch.channels_last)
        out = torch.empty(shape, dtype=grads.dtype, device=grads.device, memory_format=torch.channels_last)
        with torch.cuda.device_of(grads):
            _unpool[(triton.cdiv(out.numel(), POOLED),)](
                grads, chosen, out, out.numel(), *shape[1:], *grads.shape[2:],
                kernel=kernel, stride=stride, padding=padding, windows=triton.cdiv(kernel, stride), size=POOLED,
            )  # fmt: skip
        return out, None, None, None


def batch_norm(module: nn.BatchNorm2d, images: Tensor) -> Tensor:
    """Do what a batch norm in training does with images, (batch, channels, height, width)."""
    if not (module.training and _taken(images) and images.shape[1] == module.num_features):
        return nn.BatchNorm2d.forward(module, images)
    return _BatchNorm.apply(  # type: ignore[no-untyped-call]
        images, module.weight, module.bias, module.running_mean, module.running_var, module.momentum, module.eps
    )


def max_pool(module: nn.MaxPool2d, images: Tensor) -> Tensor:
    """Pool images, (batch, channels, height, width), as the module does, whose windows are square and not dilated."""
    kernel, stride, padding = (_side(each) for each in (module.kernel_size, module.stride, module.padding))
    assert kernel is not None
    assert padding is not None
    if not _taken(images) or 2 * padding > kernel or min(images.shape[2:]) + 2 * padding < kernel:
        return nn.MaxPool2d.forward(module, images)  # which refuses such windows
    return _MaxPool.apply(images, kernel, stride, padding)  # type: ignore[no-untyped-call]


def forward_of(module: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    """Return the forward pass that does the same as a layer's in training; None if there is none."""
    if "forward" in vars(module):
        return None
    if type(module) is nn.BatchNorm2d:
        needed = module.weight, module.bias, module.running_mean, module.running_var, module.momentum
        return None if any(each is None for each in needed) else batch_norm
    if type(module) is nn.MaxPool2d and not (module.return_indices or module.ceil_mode) and _side(module.dilation) == 1:
        sides = [_side(each) for each in (module.kernel_size, module.stride, module.padding)]
        return max_pool if None not in sides and sides[0] <= LARGEST_WINDOW else None  # type: ignore[operator]
    return None


def check(device: torch.device) -> None:
    """Compile all kernels, and run them beside torch's own layers, on rows of more than one part.

    Each result is compared as a whole, by its norm: a sum of gradients that nearly cancel is no less exact for being
    small.

    Raises:
        RuntimeError: they differ by more than bfloat16's rounding explains.
        Exception: whatever Triton, its compiler or the driver reports.
    """
    kinds: tuple[Callable[[], nn.Module], ...] = (lambda: nn.BatchNorm2d(16), lambda: nn.MaxPool2d(3, 2, 1))
    for kind in kinds:
        ours, theirs = (_results(kind(), device, own=own) for own in (True, False))
        for name, expected in theirs.items():
            differ = ((ours[name] - expected).norm() / expected.norm()).item()
            if not differ < TOLERANCE:
                layer = type(kind()).__name__
                raise RuntimeError(
                    f"our kernels of {layer} compute something else than torch: {name} differs by {differ:.2g}"
                )


def _results(layer: nn.Module, device: torch.device, *, own: bool) -> dict[str, Tensor]:
    """Return what a layer computes from given images and gradients, by our kernels or torch's."""
    forward = forward_of(layer) if own else type(layer).forward
    assert forward is not None
    layer.to(device)
    images = _waves((32, 16, 18, 18), 0.7, device).add(1.0).bfloat16().requires_grad_()
    out = forward(layer, images)
    # Along the normalised images, apart from them, and of a mean other than 0: no result is a sum that cancels. Laid
    # out as in training: of others torch 2.11 sums gradients of weights with an error of 1e-3 on an H200.
    grads = _waves(out.shape, 0.7, device) + _waves(out.shape, 1.3, device) + 0.5
    out.backward(grads.bfloat16())
    found = {"output": out, "gradient of images": images.grad}
    found |= {f"gradient of {name}": each.grad for name, each in layer.named_parameters()}
    found |= {name: each for name, each in layer.named_buffers() if name.startswith("running")}
    return {name: each.detach().float() for name, each in found.items() if each is not None}


def _waves(shape: Sequence[int], step: float, device: torch.device) -> Tensor:
    places = torch.arange(math.prod(shape), dtype=torch.float32, device=device)
    return places.mul(step).sin().reshape(*shape).contiguous(memory_format=torch.channels_last)


def _side(given: int | tuple[int, ...]) -> int | None:
    """Return the one number that is given, for both axes; None if there are two."""
    sides = {given} if isinstance(given, int) else set(given)
    return sides.pop() if len(sides) == 1 else None


def _taken(images: Tensor) -> bool:
    """Whether the kernels know this input: others are torch's."""
    return (
        images.ndim == 4
        and images.dtype == torch.bfloat16
        and images.is_contiguous(memory_format=torch.channels_last)
        and images.shape[1] < images.numel() < LARGEST
    )
