from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from kdsearch.search.workshop import Workshop


class Told(nn.Module):
    """A classifier by its first pixel that notes the types of its layers' outputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.kinds = layer, set[torch.dtype]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.layer(images)
        self.kinds.add(output.dtype)
        return output.flatten(1)[:, :10].float()


@pytest.mark.parametrize(
    ("layer", "precision", "kind"),
    [
        (nn.Conv2d(1, 10, 8), "bfloat16", torch.bfloat16),
        (nn.Conv2d(1, 10, 8), "float32", torch.float32),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "bfloat16", torch.float32),  # dense students stay in float32
    ],
)
def test_validation_is_in_the_precision_of_training_and_the_test_in_float32(workshop: Workshop, layer, precision, kind):
    ours, student = dataclasses.replace(workshop, precision=precision), Told(layer)
    validated = ours.validate(student)
    assert student.kinds == {kind}
    assert validated == pytest.approx(ours.glance(student, ours.split.validation))
    student.kinds.clear()
    tested = ours.test(student)
    assert student.kinds == {torch.float32}
    assert ours.glance(student, ours.split.test) == pytest.approx(tested, abs=0.03)
