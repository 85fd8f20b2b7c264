"""Training without a kernel for each layer's cast and without counting batches on the device."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdsearch.distil.step import Format
from kdsearch.networks import cpu_layers

CAST = (nn.Conv2d, nn.Linear)  # exact types: autocast casts their weights, and a subclass may use them otherwise
Norm = nn.modules.batchnorm._BatchNorm


class Lean:
    """Context of the steps of an epoch, in which the network has no avoidable kernels; after it, it is as before.

    In bfloat16 its convolutions and dense layers hold bfloat16 copies of their weights. All are cast at once by `cast`
    (one fused kernel on CUDA instead of one a layer), and their gradients by `collect`; the arithmetic is that of
    autocast, under which forward passes still run. Batch norm does not count batches on the device; on leaving, the
    counts are as if it had. On a CPU layers are computed as in `cpu_layers`, and the parts of gradients that oneDNN
    leaves unwritten are 0 (`unseen`); on CUDA batch norm and max pooling are our own kernels (`gpu_layers`).

    Args:
        network: in its memory format already; its parameters are the optimiser's.
        form: its format; if bfloat16, its forward passes run under autocast.
    """

    def __init__(self, network: nn.Module, form: Format) -> None:
        # a momentum of None needs the count: the mean over batches
        self._norms = [
            module
            for module in network.modules()
            if isinstance(module, Norm) and type(module).forward is Norm.forward and module.momentum is not None
            if module.num_batches_tracked is not None
        ]
        self._counts: list[Tensor] = []
        self._places = [
            (module, name, weight, nn.Parameter(weight.detach().bfloat16(), weight.requires_grad))
            for module, name, weight in (_cast_alone(network) if form.bf16 else [])
        ]
        self._weights: list[Tensor] = [weight for _, _, weight, _ in self._places]
        self._copies: list[Tensor] = [copy for _, _, _, copy in self._places]
        # written in place: a captured step's optimiser reads these addresses
        self._gradients = [torch.empty_like(weight) for weight in self._weights]
        self._unseen: list[Tensor] = []  # the parts of gradients that stay 0
        quick = cpu_layers.quick(network) if form.memory is torch.channels_last else []
        self._own = [*quick, *(_own_layers(network) if form.bf16 else [])]
        taken = {module for module, _ in quick}  # these leave no part unwritten
        self._fresh = {  # gradients of layers whose input has not been seen yet
            module: gradient
            for (module, name, weight, _), gradient in zip(self._places, self._gradients, strict=True)
            if isinstance(module, nn.Conv2d) and name == "weight" and weight.device.type == "cpu"
            if module not in taken
        }
        self._hooks: list[RemovableHandle] = []
        self.steps = 0  # taken in this epoch

    def __enter__(self) -> Lean:
        self.steps = 0
        self._counts = [norm.num_batches_tracked for norm in self._norms]  # type: ignore[misc]
        for norm in self._norms:
            norm.num_batches_tracked = None
        for module, name, _, copy in self._places:
            setattr(module, name, copy)
        for module, forward in self._own:
            module.forward = forward  # type: ignore[method-assign]
        self._hooks = [module.register_forward_pre_hook(self._look) for module in self._fresh]
        return self

    def _look(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Note, at a layer's first input, which parts of its kernels see padding alone."""
        assert isinstance(module, nn.Conv2d)
        gradient = self._fresh.pop(module, None)
        if gradient is not None:
            rows, columns = unseen(module, inputs[0].shape[-2:])
            self._unseen += [gradient[:, :, row] for row in rows] + [gradient[..., column] for column in columns]

    def __exit__(self, *error: object) -> None:
        for norm, count in zip(self._norms, self._counts, strict=True):
            norm.num_batches_tracked = count
        for module, name, weight, _ in self._places:
            setattr(module, name, weight)
        for module, _ in self._own:
            del module.forward
        for hook in self._hooks:
            hook.remove()
        if self._counts and self.steps:
            torch._foreach_add_(self._counts, self.steps)  # last: it may fail with the device

    @torch.no_grad()
    def cast(self) -> None:
        """Write the weights of this step into their copies, whose gradients are dropped."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._weights)
        for copy in self._copies:
            copy.grad = None

    @torch.no_grad()
    def collect(self) -> None:
        """Give the weights the gradients of their copies, in float32; those without one have none."""
        taken = [
            (gradient, copy.grad, weight)
            for gradient, copy, weight in zip(self._gradients, self._copies, self._weights, strict=True)
            if copy.grad is not None
        ]
        if taken:
            torch._foreach_copy_([gradient for gradient, _, _ in taken], [found for _, found, _ in taken])
        if self._unseen:
            torch._foreach_zero_(self._unseen)
        for gradient, _, weight in taken:
            weight.grad = gradient


def _own_layers(network: nn.Module) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Return the batch norms and max poolings on CUDA that `gpu_layers` knows, each with its forward pass there."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    layers = own_kernels(device) if device.type == "cuda" else None
    if layers is None:
        return []
    return [
        (module, partial(forward, module))
        for module in network.modules()
        if (forward := layers.forward_of(module)) is not None
    ]


@cache
def own_kernels(device: torch.device) -> ModuleType | None:
    """Return the module of our own kernels where Triton compiles them: it needs a C compiler and comes with torch."""
    try:
        from kdsearch.distil import gpu_layers as layers

        layers.check(device)
    except Exception as error:  # of an import, a compiler or a driver: torch's own layers do the same
        reason = " ".join(str(error).split())[-200:]  # a compiler shows the source first
        warnings.warn(
            f"training uses torch's batch norm and max pooling, as Triton does not run: {reason}", stacklevel=2
        )
        return None
    return layers


def unseen(layer: nn.Conv2d, size: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the rows and the columns of a layer's kernel that see nothing but zeros around an input of this size.

    Their gradient is 0. oneDNN leaves that part of a bfloat16 weight gradient as its memory was, at times NaN: so a 3x3
    convolution of stride 2 on 2x2 images, the last stage of a student of stride 4 on 32x32 ones (torch 2.14.1).
    """
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return [], []

    def of(axis: int) -> list[int]:
        kernel = layer.kernel_size[axis]
        padding, dilation = int(layer.padding[axis]), layer.dilation[axis]
        seen = cpu_layers.seeing(size[axis], kernel, layer.stride[axis], padding, dilation)
        return sorted({*range(kernel)} - {*seen})

    return of(0), of(1)


def _cast_alone(network: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Return the parameters of layers that autocast casts, with their places, if nothing else holds them."""
    held = Counter(parameter for module in network.modules() for parameter in module._parameters.values())
    return [
        (module, name, parameter)
        for module in network.modules()
        if type(module) in CAST
        for name, parameter in module._parameters.items()
        if parameter is not None and held[parameter] == 1
    ]
