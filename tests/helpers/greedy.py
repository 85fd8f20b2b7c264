"""A family of students of which the wide ones want more memory than there is; tests register it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.networks import Family, Shape, mlp

WIDEST = 100  # student that fits
TOO_MUCH = 1 << 50  # bytes that no machine has
CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB." + " GPU 0 has a total capacity of 79.19 GiB." * 9
made: list[weakref.ref[nn.Module]] = []
real = True  # whether the operating system refuses the memory, or a stand-in for CUDA's allocator


class Student(nn.Sequential):
    """As of `mlp`, but for what it wants in training."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (batch, classes)."""
        first = self[1]
        assert isinstance(first, nn.Linear)
        if self.training and first.out_features > WIDEST and not images.is_meta:
            if real:
                torch.empty(TOO_MUCH, dtype=torch.uint8, device=images.device)
            raise torch.OutOfMemoryError(CUDA)
        logits: Tensor = super().forward(images)
        return logits


def build(architecture: Mapping[str, Any], shape: Shape, classes: int) -> nn.Module:
    """Keeps a weak reference, so that a test can tell which students are still held."""
    student = Student(*mlp.build(architecture, shape, classes))
    made.append(weakref.ref(student))
    return student


FAMILY = Family(dimensions=("width",), build=build)
