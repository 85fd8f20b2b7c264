"""Augmented views of images by index, made on the device: flips and shifts form a finite set, a pool is a subset."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kdsearch.spec import Augment
from kdsearch.system import machine

ROWS = 4096  # images whose pools are drawn at once


def count(augment: Augment) -> int:
    """Return how many views an image has."""
    return augment.different


def shown(augment: Augment) -> int:
    """Return in how many of its views an image is shown: those of its pool, or all without a pool."""
    return augment.views or augment.different


@lru_cache(maxsize=4)
def pool(images: int, augment: Augment) -> Tensor | None:
    """Return the pools of views, drawn for each image from all its views without replacement.

    They are the same for every study, so that a teacher's outputs serve them all. The pools of the first images do not
    depend on the number of images, and a smaller pool is the beginning of a larger one.

    Returns:
        (images, views), int16, on the CPU, shared: not to be modified. None without a pool.
    """
    if augment.views is None:
        return None
    parts = []
    for first in range(0, images, ROWS):
        seed = machine.derive_seed("pool", augment.flip, augment.shift, first)
        keys = torch.rand(ROWS, augment.different, generator=torch.Generator().manual_seed(seed))
        parts.append(keys.argsort(dim=1, stable=True)[: images - first, : augment.views].to(torch.int16))
    return torch.cat(parts)


def places(images: int, augment: Augment, *, seed: int, epoch: int) -> Tensor:
    """Return the index in its pool of each image's view of an epoch (1, 2, ...): training cycles through it from a
    random start.

    Returns:
        (images,), int64, on the CPU, each in [0, views); an image's index does not depend on how many others follow.
    """
    assert augment.views is not None
    generator = torch.Generator().manual_seed(machine.derive_seed("views", seed))
    starts = torch.randint(augment.views, (images,), generator=generator)
    return (starts + (epoch - 1)) % augment.views


def make(images: Tensor, views: Tensor, augment: Augment) -> Tensor:
    """Make one view of each image.

    View `v` is flipped if v is at least the number of shifts; the rest of v encodes down and right shift, row by row
    from (-shift, -shift); the shift comes before the flip. Zeros come in at the edges.

    Args:
        images: (batch, channels, height, width), any type.
        views: (batch,), int64, each in [0, count(augment)).

    Returns:
        Views of the images, of the same shape and type; channels are last in memory.
    """
    side = 2 * augment.shift + 1
    if count(augment) == 1:
        return images
    flips, rest = views // side**2, views % side**2
    down, right = rest // side, rest % side  # 0 is a shift by -augment.shift: the window starts lower in the padding
    _, _, height, width = images.shape
    device = images.device
    rows = torch.arange(height, device=device) + (2 * augment.shift - down)[:, None]
    columns = torch.arange(width, device=device).expand(len(images), width)
    columns = torch.where(flips[:, None] > 0, width - 1 - columns, columns) + (2 * augment.shift - right)[:, None]
    padded = F.pad(images, [augment.shift] * 4)
    batch = torch.arange(len(images), device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
