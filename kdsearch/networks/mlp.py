"""The deck's MNIST student: one hidden dense layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from kdsearch.networks import Family, Shape


def build(architecture: Mapping[str, Any], shape: Shape, classes: int) -> nn.Module:
    """Build flatten, dense of `width` with ReLU, dense of `classes` (deck, MNIST students)."""
    width = int(architecture["width"])
    inputs = math.prod(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, classes))


FAMILY = Family(dimensions=("width",), build=build, whole=("width",), stages=())
