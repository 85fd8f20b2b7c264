"""Students of depthwise-separable convolutions (Howard et al., arXiv 1704.04861)."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from kdsearch.networks import Family, Shape


def build(architecture: Mapping[str, Any], shape: Shape, classes: int) -> nn.Module:
    """`depth` separable convolutions of `channels` channels, pooled."""
    channels = architecture["channels"]
    layers: list[nn.Module] = [nn.Conv2d(shape[0], channels, 3, padding=1), nn.ReLU()]
    for _ in range(architecture["depth"]):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, groups=channels), nn.Conv2d(channels, channels, 1)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


FAMILY = Family(dimensions=("channels", "depth"), build=build)
