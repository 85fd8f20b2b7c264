"""One training step over images by index, the same on every device; on CUDA captured in a graph and replayed."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsearch.records import Precision
from kdsearch.system import machine

EAGER_STEPS = 3  # before the capture: kernels are chosen and the optimiser creates its states

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

    The first steps of a training are taken as they are, which warms up what a capture needs warm; a last batch of
    another size is, too. So no step is taken twice and none is lost: a captured training is the plain one, but for
    rounding where kernels are chosen anew. What changes from step to step lies in tensors: indices, rate and epoch.
    The last of the first steps is watched: one that waits for the device is never captured, for a capture that fails
    leaves stream, allocator and generator of the process in disorder.

    Args:
        take: a step from indices, (batch,) int64, and views, (batch,) int64; it should not wait for the device.
        batch_size: of the batches that are captured.
        device: where the indices are.
        capture: whether a graph is wanted on CUDA.
    """

    def __init__(
        self, take: Callable[[Tensor, Tensor], None], *, batch_size: int, device: torch.device, capture: bool
    ) -> None:
        self._take, self._device = take, device
        self._wanted = capture and device.type == "cuda"
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
            if self._eager < EAGER_STEPS:
                self._aside(lambda: self._take(chosen, drawn))
            elif self._waits(lambda: self._take(chosen, drawn)):
                self._give_up("it waits for the device")
            return
        if self._graph is None and not self._capture():
            self._take(chosen, drawn)
            return
        assert self._graph is not None
        self._chosen.copy_(chosen)
        self._drawn.copy_(drawn)
        self._graph.replay()

    def _aside(self, call: Callable[[], None]) -> None:
        """Runs a call on the stream that the capture will be made on."""
        side, current = self._side(), torch.cuda.current_stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            call()
        current.wait_stream(side)

    def _side(self) -> torch.cuda.Stream:
        """The stream of the first steps and of the capture."""
        return machine.side_stream(machine.cuda_index(self._device))

    def _waits(self, call: Callable[[], None]) -> bool:
        """Takes a step aside; whether the host waited for the device in it, in a way that torch sees.

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
        """Takes all further steps as they are, and says why, once."""
        warnings.warn(f"a step that cannot be captured in a CUDA graph runs as it is: {reason}", stacklevel=3)
        self._wanted = False

    def close(self) -> None:
        """Drops the graph and its memory, at the end of a training; steps after it are taken as they are."""
        self._wanted = False
        if self._graph is not None:
            with suppress(RuntimeError):  # of a training that failed: its own error is the one to be seen
                machine.synchronize(self._device)
            self._graph.reset()
            self._graph = None

    def _capture(self) -> bool:
        """Capture a step without taking it; return whether that was possible."""
        graph = torch.cuda.CUDAGraph()
        device, current = torch.cuda.current_device(), torch.cuda.current_stream(self._device)
        try:
            with no_collector(), torch.cuda.graph(graph, stream=self._side(), capture_error_mode="thread_local"):
                self._take(self._chosen, self._drawn)
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


@contextmanager
def no_collector() -> Iterator[None]:
    """Collects what is unreachable, and runs its body without the collector: what that frees may end a capture."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _mend(graph: torch.cuda.CUDAGraph, index: int) -> None:
    """Puts in order, as far as torch lets anyone, what a failed capture leaves behind in the process.

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
