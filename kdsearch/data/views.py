"""Augmented views of images by index, made on the device: flips and shifts are a finite set."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdsearch.spec import Augment


def count(augment: Augment) -> int:
    """How many views an image has: with or without a flip, times all shifts (162 for flips and 4 pixels)."""
    return (2 if augment.flip else 1) * (2 * augment.shift + 1) ** 2


def pool_size(augment: Augment, longest: int) -> int:
    """How many views of an image a teacher is asked for: each of a training's epochs sees another, while there are any.

    Args:
        augment: whose views there are.
        longest: epochs of the longest training.
    """
    return min(count(augment), longest)


def make(images: Tensor, views: Tensor, augment: Augment) -> Tensor:
    """One view of each image.

    View `v` is flipped if v is not below the number of shifts; the rest of v says down and right shift, row by row
    from (-shift, -shift), which comes before the flip. Zeros come in at the edges.

    Args:
        images: (batch, channels, height, width), any type.
        views: (batch,), int64, each in [0, count(augment)).

    Returns:
        Views of the images, of the same shape and type; channels come last in memory.
    """
    side = 2 * augment.shift + 1
    if count(augment) == 1:
        return images
    flips, rest = views // side**2, views % side**2
    down, right = (
        rest // side,
        rest % side,
    )  # 0 is a shift by -augment.shift: the window starts lower in the padding
    _, _, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + (2 * augment.shift - down)[:, None]
    columns = torch.arange(width, device=device).expand(len(images), width)
    columns = torch.where(flips[:, None] > 0, width - 1 - columns, columns) + (2 * augment.shift - right)[:, None]
    padded = F.pad(images, [augment.shift] * 4)
    batch = torch.arange(len(images), device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
