"""One training step over images by index, the same on every device; on CUDA captured in a graph and replayed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsearch.records import Precision

EAGER_STEPS = 3  # before the capture: kernels are chosen and the optimiser creates its states


@dataclass(frozen=True)
class Format:
    """Compute format of a network, in training and when a teacher is asked.

    Attributes:
        bf16: whether forward passes run under autocast to bfloat16; weights and losses stay float32.
        memory: memory format of images and weights.
    """

    bf16: bool
    memory: torch.memory_format

    @property
    def precision(self) -> Precision:
        """Precision of forward passes."""
        return "bfloat16" if self.bf16 else "float32"

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of a forward pass on a device."""
        # torch's autocast, even disabled, costs a small student on a CPU a twentieth of its step
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def lay_out(self, images: Tensor) -> Tensor:
        """Return a network's input, (batch, channels, height, width), in the memory format."""
        return images.contiguous(memory_format=self.memory) if images.ndim == 4 else images


def usual_precision(device: torch.device) -> Precision:
    """Return the default precision of convolutions: bfloat16 on CUDA devices that support it, else float32."""
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def convolves(network: nn.Module) -> bool:
    """Return whether a network has image convolutions."""
    return any(isinstance(module, nn.Conv2d) for module in network.modules())


def format_for(network: nn.Module, device: torch.device, precision: Precision | None = None) -> Format:
    """Return a network's format: channels last and possibly bfloat16 for convolutions, neither for dense networks.

    On a CPU without bfloat16 instructions, bfloat16 would be ten times slower. Small dense layers on CUDA are bound by
    kernel launches, which casts add to.

    Args:
        network: to be trained or asked.
        device: where it is.
        precision: of convolutions (chosen by `distil.precision`); None: the device's default.
    """
    if not convolves(network):
        return Format(False, torch.contiguous_format)
    return Format((precision or usual_precision(device)) == "bfloat16", torch.channels_last)


class Steps:
    """Takes training steps: directly, or on CUDA as a graph of all their kernels, captured once and replayed.

    The first steps of a training are taken directly, which warms up what a capture needs; so is a last batch of another
    size. No step is taken twice or lost, so a captured training equals the plain one, but for rounding if kernels are
    chosen anew. Everything that changes from step to step is in tensors: indices, rate and epoch.

    Args:
        take: takes a step from indices, (batch,) int64, and views, (batch,) int64; must not wait for the device.
        batch_size: of the captured batches.
        device: of the indices.
        capture: whether to capture a graph on CUDA.
    """

    def __init__(
        self, take: Callable[[Tensor, Tensor], None], *, batch_size: int, device: torch.device, capture: bool
    ) -> None:
        self._take, self._device = take, device
        self._wanted = capture and device.type == "cuda"
        self._stream: torch.cuda.Stream | None = None  # of the first steps and of the capture
        self._eager = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._chosen, self._drawn = (torch.zeros(batch_size, dtype=torch.int64, device=device) for _ in range(2))

    def __call__(self, chosen: Tensor, drawn: Tensor) -> None:
        """Take a step.

        Args:
            chosen: (batch,), int64: indices of the images.
            drawn: (batch,), int64: the view of each.
        """
        if not self._wanted or len(chosen) != len(self._chosen):
            self._take(chosen, drawn)
            return
        if self._graph is None and self._eager < EAGER_STEPS:
            self._eager += 1
            self._aside(lambda: self._take(chosen, drawn))
            return
        if self._graph is None and not self._capture():
            self._take(chosen, drawn)
            return
        assert self._graph is not None
        self._chosen.copy_(chosen)
        self._drawn.copy_(drawn)
        self._graph.replay()

    def _aside(self, call: Callable[[], None]) -> None:
        """Run a call on the stream of the capture."""
        self._stream = self._stream or torch.cuda.Stream(self._device)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            call()
        current.wait_stream(self._stream)

    def _capture(self) -> bool:
        """Capture a step without taking it; return whether that was possible."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._take(self._chosen, self._drawn)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a user's network may wait for the device in its forward pass
            reason = str(error).splitlines()[0]
            warnings.warn(f"a step that cannot be captured in a CUDA graph runs as it is: {reason}", stacklevel=2)
            self._wanted = False
            return False
        self._graph = graph
        return True
