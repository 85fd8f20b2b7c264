"""Fast inference of a frozen teacher: batch norm folded into convolutions, channels last, large batches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.data import ImageSet
from kdsearch.distil.step import Format, format_for
from kdsearch.measure.accuracy import batch_of
from kdsearch.records import Precision

Ask = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Function from a network's input to logits, (batch, classes), and embeddings, (batch, features), both float32."""

EXACT = 1e-3  # tolerance of a folded network's outputs, relative to the largest one
EXAMPLES = 8  # images on which a folded network is checked


def batch_size(data: ImageSet) -> int:
    """Return the batch size of a teacher's forward pass."""
    size = batch_of(data.images)
    return size if data.labels.device.type == "cpu" else 4 * size


def ready(network: nn.Module, example: Tensor, precision: Precision | None = None, *, fold: bool = True) -> Ask:
    """Return a function that computes a network's answers as fast as its format allows, equal but for rounding.

    Args:
        network: on the example's device; put in evaluation mode, otherwise unchanged.
        example: (images, channels, height, width), part of its input.
        precision: of its convolutions; None: the device's default.
        fold: whether a copy with folded batch norm may be used; must be False if weights are quantised.
    """
    network.eval()
    form = format_for(network, example.device, precision)
    asked = folded(network, example[:EXAMPLES]) if fold else network

    def ask(images: Tensor) -> tuple[Tensor, Tensor]:
        return logits_and_embedding(asked, images, form)

    return ask


def logits_and_embedding(network: nn.Module, images: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """Return a network's float32 logits, (batch, classes), and embeddings, (batch, features).

    Embeddings have no features if the network has no classifier.
    """
    with form.autocast(images.device):
        if networks.has_classifier(network):
            logits, embedding = networks.with_embedding(network, form.lay_out(images))
            return logits.float(), embedding.float()
        logits = network(form.lay_out(images)).float()
    return logits, logits.new_zeros(len(logits), 0)


def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of a network with batch norm folded into preceding convolutions and weights channels last.

    The network itself is returned if folding is impossible: it has no batch norm, torch.fx cannot trace it (control
    flow on tensor values), or the copy's outputs for the example differ.

    Args:
        network: in evaluation mode.
        example: (images, channels, height, width), part of its input.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return network
    plain = Format(False, torch.contiguous_format)
    try:
        # not a stable torch API; a failure only costs speed
        from torch.fx.experimental.optimization import fuse

        copy: nn.Module = fuse(network)
        copy = copy.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            pairs = zip(*(logits_and_embedding(one, example, plain) for one in (network, copy)), strict=True)
            same = all(_near(ours, theirs) for theirs, ours in pairs)
    except Exception:
        return network
    return copy if same else network


def _near(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs are equal but for rounding; False if any value is not finite."""
    if one.shape != other.shape:
        return False
    if one.numel() == 0:
        return True
    return bool((one - other).abs().max() <= EXACT * other.abs().max())
