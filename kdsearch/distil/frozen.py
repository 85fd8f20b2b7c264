"""A frozen teacher made ready to answer fast: batch norm folded into convolutions, channels last, big batches."""

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
"""From a network's input to its logits, (batch, classes), and embeddings, (batch, features), both float32."""

EXACT = 1e-3  # how far a folded network's outputs may lie from its own, as a share of their largest
EXAMPLES = 8  # images that a folded network is checked on


def batch_size(data: ImageSet) -> int:
    """Images that are asked for at once."""
    size = batch_of(data.images)
    return size if data.labels.device.type == "cpu" else 4 * size


def ready(network: nn.Module, example: Tensor, precision: Precision | None = None, *, fold: bool = True) -> Ask:
    """What asks a network, as fast as its format allows; its answers are its own but for rounding.

    Args:
        network: on the example's device; put in evaluation mode, else left as it is.
        example: (images, channels, height, width), some of its input.
        precision: of its convolutions; None: the usual one of the device.
        fold: whether a copy with folded batch norm may answer in its place; not so where weights are quantised.
    """
    network.eval()
    form = format_for(network, example.device, precision)
    asked = folded(network, example[:EXAMPLES]) if fold else network

    def ask(images: Tensor) -> tuple[Tensor, Tensor]:
        return logits_and_embedding(asked, images, form)

    return ask


def logits_and_embedding(network: nn.Module, images: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """A network's logits, (batch, classes), and embeddings, (batch, features): of no features if it has no classifier.

    Both are float32, whatever the format computes in.
    """
    with form.autocast(images.device):
        if networks.has_classifier(network):
            logits, embedding = networks.with_embedding(network, form.lay_out(images))
            return logits.float(), embedding.float()
        logits = network(form.lay_out(images)).float()
    return logits, logits.new_zeros(len(logits), 0)


def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a network with batch norm folded into the convolutions before it, its weights channels last.

    The network itself is returned where nothing can be folded: where it has no batch norm, where torch.fx cannot follow
    it (Python control flow that looks at tensors), or where the copy's outputs for the example are not its own.

    Args:
        network: in evaluation mode.
        example: (images, channels, height, width), some of its input.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return network
    plain = Format(False, torch.contiguous_format)
    try:
        # not promised by torch, so whatever goes wrong here costs speed alone
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
    """Whether two outputs are alike but for rounding; not where any is not finite."""
    if one.shape != other.shape:
        return False
    if one.numel() == 0:
        return True
    return bool((one - other).abs().max() <= EXACT * other.abs().max())
