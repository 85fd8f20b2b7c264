"""The deck's MNIST teacher: a convolution and two dense layers of 1200."""

from __future__ import annotations

from torch import nn

from kdsearch.networks import Shape

FILTERS = 32
HIDDEN = 1200
DROPOUT = 0.5


def build(shape: Shape, classes: int) -> nn.Module:
    """Build conv 3x3 with 32 filters, no padding, ReLU, dense 1200, 1200, `classes`; dropout 0.5 after hidden layers.

    The layers are those of the deck's published code; the first dense layer fits the image's size (21,632 inputs
    for 28x28).
    """
    channels, height, width = shape
    flat = FILTERS * (height - 2) * (width - 2)
    return nn.Sequential(
        nn.Conv2d(channels, FILTERS, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, HIDDEN),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(HIDDEN, classes),
    )
