"""Augmented views of images by index, made on the device: flips and shifts are a finite set, a pool a part of it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kdsearch.spec import Augment
from kdsearch.system import machine

ROWS = 4096  # images whose pools are drawn at once


def count(augment: Augment) -> int:
    """How many views an image has: with or without a flip, times all shifts (162 for flips and 4 pixels)."""
    return augment.different


def shown(augment: Augment) -> int:
    """How many of its views an image is shown in: those of its pool, or all where there is none."""
    return augment.views or augment.different


@lru_cache(maxsize=4)
def pool(images: int, augment: Augment) -> Tensor | None:
    """The pools of views, drawn for each image from all its views without replacement.

    The same for every study, so that a teacher's answers serve them all. The pools of the first images do not depend on
    how many follow, and a smaller pool is the beginning of a larger one.

    Args:
        images: how many there are.
        augment: says what views there are and how many of them make a pool.

    Returns:
        (images, views), int16, on the CPU, shared: not to be changed. None where there is no pool.
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
    """Where in its pool each image's view of an epoch stands: a training goes round the pool from a random start.

    Args:
        images: how many there are.
        augment: with a pool.
        seed: of the training.
        epoch: counted from 1.

    Returns:
        (images,), int64, on the CPU, each in [0, views); an image's depends on the number of no other.
    """
    assert augment.views is not None
    generator = torch.Generator().manual_seed(machine.derive_seed("views", seed))
    starts = torch.randint(augment.views, (images,), generator=generator)
    return (starts + (epoch - 1)) % augment.views


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
