"""Accuracy, and a network's outputs over a whole set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdsearch.data import ImageSet

BATCH = 500


def logits(network: nn.Module, images: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """A network's outputs, in evaluation mode, over images of bytes.

    Args:
        network: on the images' device; left in evaluation mode.
        images: (count, channels, height, width), uint8.
        prepare: from images of bytes to the network's input.

    Returns:
        (count, classes), float32.
    """
    network.eval()
    with torch.inference_mode():
        parts = [network(prepare(part)) for part in images.split(BATCH)]
    return torch.cat(parts).clone()


def hits(network: nn.Module, data: ImageSet, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """(images,), bool: whether the label has the largest logit."""
    return logits(network, data.images, prepare).argmax(1) == data.labels


def accuracy(network: nn.Module, data: ImageSet, prepare: Callable[[Tensor], Tensor]) -> float:
    """Fraction of the images whose label has the largest logit."""
    return hits(network, data, prepare).float().mean(dtype=torch.float64).item()
