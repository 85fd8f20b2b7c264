"""Compute a lower bound of a training step's time: its counted work over the device's measured peak rates."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kdsearch import networks
from kdsearch.spec import Recipe
from kdsearch.system import machine

MIN_CALLS = 3
MIN_SECONDS = 0.4  # of calls, of which the fastest counts
SIDES = {"cpu": 2048, "cuda": 8192}  # of the square matrices to multiply
IMAGES = {"cpu": 16, "cuda": 1024}  # images of 28x28 and 256 channels to convolve
FLOAT, HALF = 4, 2  # bytes
COPIED = {"cpu": 2**27, "cuda": 2**30}  # bytes
COUNTED = (
    "Operations are those of matrix products and convolutions, forward and backward, a multiply-add as 2. Bytes: "
    "parameters read forward, backward and by the optimiser, which writes them; gradients written and read; each "
    "of the optimiser's states read and written; the images read twice; the outputs of convolutions and dense layers "
    "and the gradients of these outputs, each written and read once. What lies between those layers is taken as free, "
    "for it could be fused."
)


@dataclass(frozen=True)
class Work:
    """The minimum work of one step.

    Attributes:
        operations: of matrix products and convolutions.
        octets: bytes that must be moved.
        held: bytes of parameters, gradients and optimiser states.
        bf16: whether the operations are in bfloat16.
    """

    operations: int
    octets: int
    held: int
    bf16: bool = False


@dataclass(frozen=True)
class Floor:
    """A step's work, and the device's peak rates.

    Attributes:
        work: of a step.
        rate: operations a second, the best measured.
        bandwidth: bytes a second, read and written, the best measured.
    """

    work: Work
    rate: float
    bandwidth: float

    @property
    def seconds(self) -> float:
        """The least time of a step."""
        return max(self.work.operations / self.rate, self.work.octets / self.bandwidth)

    @property
    def bound(self) -> str:
        """Which of the two rates limits the step."""
        return "operations" if self.work.operations / self.rate >= self.work.octets / self.bandwidth else "bytes"


def count(
    student: nn.Module, images: Tensor, loss: Callable[[Tensor], Tensor], recipe: Recipe, *, bf16: bool = False
) -> Work:
    """Count a step's work.

    Args:
        student: not changed.
        images: (batch, channels, height, width), its input.
        loss: maps its logits, (batch, classes), to a scalar.
        recipe: its optimiser holds 2 states a parameter (adam), 1 (sgd with momentum) or none.
        bf16: whether images and outputs move in two bytes; parameters and their states move in four.
    """
    trained = copy.deepcopy(student).train()
    made: list[int] = []
    for module in trained.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output: made.append(output.numel()))
    with FlopCounterMode(display=False) as counter:
        loss(trained(images)).backward()
    states = 2 if recipe.optimizer == "adam" else int(recipe.momentum > 0)
    held = networks.parameters(trained)
    moved = held * (6 + 2 * states) * FLOAT + (2 * images.numel() + 4 * sum(made)) * (HALF if bf16 else FLOAT)
    return Work(int(counter.get_total_flops()), moved, held * (2 + states) * FLOAT, bf16)


def measure(work: Work, device: torch.device, *, threads: int | None) -> Floor:
    """Measure the floor of a step: the best of large products and a large convolution in its type, and of copies.

    A copy of the size of what the step holds is measured, too: small networks fit into the processor's cache, which is
    faster than its memory.
    quicker than its memory.

    Args:
        work: of `count`.
        device: to measure.
        threads: on a CPU; None: torch's default.
    """
    with machine.threads(threads), torch.inference_mode():
        dtype = torch.bfloat16 if work.bf16 else torch.float32
        rate = max(_product(device, dtype), _convolution(device, dtype))
        bandwidth = max(_copy(device, COPIED[device.type]), _copy(device, max(work.held // 2, 2**20)))
    return Floor(work, rate, bandwidth)


def _best(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of several calls, after a warm-up."""
    call()
    machine.synchronize(device)
    spent: list[float] = []
    while len(spent) < MIN_CALLS or sum(spent) < MIN_SECONDS:
        begin = time.perf_counter()
        call()
        machine.synchronize(device)
        spent.append(time.perf_counter() - begin)
    return min(spent)


def _product(device: torch.device, dtype: torch.dtype) -> float:
    side = SIDES[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: left @ right, device)


def _convolution(device: torch.device, dtype: torch.dtype) -> float:
    """Return operations a second of a ResNet-like convolution, channels last; float32 as torch does it (CUDA: TF32)."""
    images = torch.randn(IMAGES[device.type], 256, 28, 28, device=device, dtype=dtype)
    weights = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
    images, weights = (each.contiguous(memory_format=torch.channels_last) for each in (images, weights))
    operations = 2 * images.numel() * 256 * 9
    return operations / _best(lambda: F.conv2d(images, weights, padding=1), device)


def _copy(device: torch.device, octets: int) -> float:
    source = torch.ones(octets, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * octets / _best(lambda: target.copy_(source), device)
