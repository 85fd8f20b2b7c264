from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from kdsearch.search.workshop import Workshop


class Told(nn.Module):
    """A classifier of one layer that notes the types of its outputs, and whether `cpu_layers` computed them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.kinds, self.faster = layer, set[torch.dtype](), set[bool]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.layer(images)
        self.kinds.add(output.dtype)
        self.faster.add("forward" in vars(self.layer))
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


def test_a_ratio_is_timed_with_torchs_own_layers(workshop: Workshop):
    timed, student = dataclasses.replace(workshop, cost="latency"), Told(nn.Conv2d(1, 10, 8))
    timed.validate(student)
    assert student.faster == {True}
    student.faster.clear()
    timed.measure(student)
    assert student.faster == {False}
