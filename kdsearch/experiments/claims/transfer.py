"""Transfer sets: the images that a student is trained with, real or not."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdsearch.data import ImageSet, Split, stratified
from kdsearch.system import machine

Images = Literal["all", "tenth", "first half", "second half", "noise", "photographs", "without a class"]
SEED = 0


def choose(which: Images, split: Split, *, left_out: int) -> ImageSet:
    """Return the images of a transfer set, on the split's device.

    Args:
        which: "all" training images; a stratified "tenth" or half of them; as many images of "noise" (every pixel
            uniform) or patches of "photographs"; or all images "without a class". Noise and photographs have no
            meaningful labels: all are 0.
        split: its training images determine the number.
        left_out: label of the class that is left out.
    """
    train = split.train
    device = train.labels.device
    if which == "all":
        return train
    if which == "without a class":
        return train.subset((train.labels != left_out).nonzero().flatten())
    if which in ("noise", "photographs"):
        count = len(train)
        made = noise(count, split) if which == "noise" else photographs(count, split)
        return ImageSet(made.to(device), torch.zeros(count, dtype=torch.int64, device=device))
    size = len(train) // (10 if which == "tenth" else 2)
    drawn, rest = stratified(train.labels.cpu(), size, SEED, f"a {which} of the training set")
    return train.subset((rest if which == "second half" else drawn).to(device))


def noise(count: int, split: Split) -> Tensor:
    """Return (count, *shape), uint8: every pixel uniform over the data set's range."""
    generator = torch.Generator().manual_seed(machine.derive_seed("noise", SEED))
    return torch.randint(int(split.top) + 1, (count, *split.shape), generator=generator, dtype=torch.uint8)


def photographs(count: int, split: Split) -> Tensor:
    """Return (count, *shape), uint8: grey patches of scikit-learn's two photographs, in the data set's range."""
    from sklearn.datasets import load_sample_images

    pictures = [torch.from_numpy(picture.copy()).float().mean(2) for picture in load_sample_images().images]
    channels, height, width = split.shape
    generator = torch.Generator().manual_seed(machine.derive_seed("photographs", SEED))
    rows, columns = pictures[0].shape
    top = torch.randint(rows - height + 1, (count,), generator=generator)
    left = torch.randint(columns - width + 1, (count,), generator=generator)
    which = torch.randint(len(pictures), (count,), generator=generator)
    stacked = torch.stack(pictures)
    down = top[:, None, None] + torch.arange(height)[None, :, None]
    across = left[:, None, None] + torch.arange(width)[None, None, :]
    patches = stacked[which[:, None, None], down, across] * (split.top / 255.0)
    return patches.round().to(torch.uint8)[:, None].expand(-1, channels, -1, -1).contiguous()
