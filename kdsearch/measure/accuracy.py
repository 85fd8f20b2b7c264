"""Accuracy, and a network's logits over a whole set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdsearch.data import Images, ImageSet
from kdsearch.networks import cpu_layers

BATCH = 500
PIXELS = 2**21  # upper limit of a batch: a layer of 64 channels at full image size then takes 512 MB
LEAST = 16  # images of a batch, however large they are


def batch_of(images: Images) -> int:
    """Return the batch size for scoring these images: 500, fewer for more than 64x64 pixels."""
    return max(LEAST, min(BATCH, PIXELS // max(1, images.shape[-2] * images.shape[-1])))


def logits(network: nn.Module, images: Images, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a network's logits, in evaluation mode, over images of bytes.

    Args:
        network: on the images' device; left in evaluation mode.
        images: (count, channels, height, width), uint8.
        prepare: from images of bytes to the network's input.

    Returns:
        (count, classes), float32.
    """
    network.eval()
    with torch.inference_mode(), cpu_layers.faster(network):
        parts = [network(prepare(part)).float() for part in images.split(batch_of(images))]
    return torch.cat(parts).clone()


def hits(network: nn.Module, data: ImageSet, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """Return which images have the largest logit at their label: (images,), bool."""
    return logits(network, data.images, prepare).argmax(1) == data.labels


def accuracy(network: nn.Module, data: ImageSet, prepare: Callable[[Tensor], Tensor]) -> float:
    """Return the fraction of images with the largest logit at their label."""
    return hits(network, data, prepare).float().mean(dtype=torch.float64).item()
