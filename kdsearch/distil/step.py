"""One training step, the same on every device; on CUDA captured in a graph and replayed; formats of networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.records import Precision
from kdsearch.system import machine

EAGER_STEPS = 3  # before the capture: kernels are chosen and the optimiser creates its states
FEW_CHANNELS = 16  # float32 values in a register of AVX-512 (of AVX2: 8)
WAITS = "called a synchronizing CUDA operation"  # torch's warning in its debug mode of synchronisation


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
        return "bfloat16" if self.bf16 else "float32"

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        # torch's autocast, even disabled, costs a small student on a CPU a twentieth of its step
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def choosing(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context of passes whose accuracy chooses and is not reported: on a CPU autocast as in training."""
        return self.autocast(device) if device.type == "cpu" else nullcontext()

    def lay_out(self, images: Tensor) -> Tensor:
        """Return a network's input, (batch, channels, height, width), in the memory format."""
        return images.contiguous(memory_format=self.memory) if images.ndim == 4 else images


def usual_precision(device: torch.device) -> Precision:
    """Return the default precision of convolutions: bfloat16 on CUDA devices that support it, else float32."""
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def format_for(network: nn.Module, device: torch.device, precision: Precision | None = None) -> Format:
    """Return a network's format: channels last and possibly bfloat16 for convolutions, neither for dense networks.

    Channels stay first on a CPU where oneDNN would break (`_breaks_onednn`): narrow ResNets. On a CPU without bfloat16
    instructions, bfloat16 would be ten times slower. Small dense layers on CUDA are bound by kernel launches, which
    casts add to.

    Args:
        network: to be trained or asked.
        device: where it is.
        precision: of convolutions; None: the device's default.
    """
    if not networks.has_layer(network, nn.Conv2d):
        return Format(False, torch.contiguous_format)
    safe = device.type != "cpu" or not any(_breaks_onednn(module) for module in network.modules())
    memory = torch.channels_last if safe else torch.contiguous_format
    return Format((precision or usual_precision(device)) == "bfloat16", memory)


def _breaks_onednn(module: nn.Module) -> bool:
    """Return whether channels last, a layer's weight gradient on a CPU writes past a workspace of oneDNN.

    A strided 1x1 convolution of fewer input channels than a vector register holds ends the process, hangs or returns
    wrong gradients (oneDNN issue 6035, open in torch 2.14.1). Seen with AVX2, float32, 2 to 6 channels to 8 or more.
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.in_channels // module.groups < FEW_CHANNELS
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
    )


class Steps:
    """Takes training steps: directly, or on CUDA as a graph of all their kernels, captured once and replayed.

    The first steps of a training are taken as they are, to warm up before the capture, and so is a last batch of
    another size. So no step is taken twice and none is lost: a captured training is the plain one, but for
    rounding where kernels are chosen anew. What changes from step to step lies in tensors: inputs, rate and epoch.
    The last of the first steps is watched: one that waits for the device is never captured, for a capture that fails
    leaves stream, allocator and generator of the process in disorder.

    Args:
        take: a step from its inputs: images first, then what belongs to them; it should not wait for the device.
        batch_size: of the batches that are captured.
        device: where the inputs are.
        capture: whether a graph is wanted on CUDA.
    """

    def __init__(self, take: Callable[..., None], *, batch_size: int, device: torch.device, capture: bool) -> None:
        self._take, self._device = take, device
        self._wanted = capture and device.type == "cuda"
        self._eager = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch_size = batch_size
        self._read: tuple[Tensor | None, ...] = ()  # the inputs that a captured step reads

    def __call__(self, *inputs: Tensor | None) -> None:
        """Take a step: its inputs, each (batch, ...) or None, have the same shapes and layouts in every whole batch."""
        if not self._wanted or inputs[0] is None or len(inputs[0]) != self._batch_size:
            self._take(*inputs)
            return
        if self._graph is None and self._eager < EAGER_STEPS:
            self._eager += 1
            if self._eager < EAGER_STEPS:
                self._aside(lambda: self._take(*inputs))
            elif self._waits(lambda: self._take(*inputs)):
                self._give_up("it waits for the device")
            return
        if self._graph is None:
            self._read = tuple(None if each is None else each.clone() for each in inputs)
            if not self._capture():
                self._take(*inputs)
                return
        assert self._graph is not None
        for place, each in zip(self._read, inputs, strict=True):
            if place is not None and each is not None:
                place.copy_(each)
        self._graph.replay()

    def _aside(self, call: Callable[[], None]) -> None:
        side, current = self._side(), torch.cuda.current_stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            call()
        current.wait_stream(side)

    def _side(self) -> torch.cuda.Stream:
        return machine.side_stream(machine.cuda_index(self._device))

    def _waits(self, call: Callable[[], None]) -> bool:
        """Take a step aside; return whether the host waited for the device in it, in a way that torch sees.

        Told by warnings, not by errors: a step that is broken off has moved batch norm and the generator already.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self._aside(call)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        others = [each for each in caught if WAITS not in str(each.message)]
        for each in others:
            if "debug mode is a prototype" not in str(each.message):
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        return len(others) < len(caught)

    def _give_up(self, reason: str) -> None:
        warnings.warn(f"a step that cannot be captured in a CUDA graph runs as it is: {reason}", stacklevel=3)
        self._wanted = False

    def close(self) -> None:
        """Drop the graph and its memory, at the end of a training; steps after it are taken as they are."""
        self._wanted = False
        if self._graph is not None:
            with suppress(RuntimeError):  # of a training that failed: its own error is the one to be seen
                machine.synchronize(self._device)
            self._graph.reset()
            self._graph, self._read = None, ()

    def _capture(self) -> bool:
        """Capture a step without taking it; return whether that was possible."""
        graph = torch.cuda.CUDAGraph()
        device, current = torch.cuda.current_device(), torch.cuda.current_stream(self._device)
        try:
            with machine.capture(graph, self._side()):
                self._take(*self._read)
        except RuntimeError as error:  # a network from elsewhere may do within its forward pass what torch does not see
            torch.cuda.set_stream(current)  # torch leaves the capture's as the current one
            torch.cuda.set_device(device)
            _mend(graph, machine.cuda_index(self._device))
            if isinstance(error, torch.OutOfMemoryError):
                raise
            self._give_up(str(error).partition("\n")[0])
            return False
        self._graph = graph
        return True


def _mend(graph: torch.cuda.CUDAGraph, index: int) -> None:
    """Put in order, as far as torch lets anyone, what a failed capture leaves behind in the process.

    The allocator still gives the graph's pool to the stream, unless the capture was ended; the generator still takes
    itself for captured, and refuses to draw; the stream is not used again. The graph's pool is not released, for the
    graph releases it itself where it came that far, and a second time would end the process.
    """
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(index, graph.pool())
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(generator.clone_state())
    machine.side_stream.cache_clear()
    with suppress(RuntimeError):  # an error that stays comes again with the next step
        torch.cuda.synchronize(index)
