from __future__ import annotations

import pytest
import torch
from torch import nn

from kdsearch import networks
from kdsearch.measure import flops

IMAGES = torch.zeros(7, 1, 8, 8)


def mlp(width: int) -> nn.Module:
    return networks.student_family("mlp").build({"width": width}, (1, 8, 8), 10)


def test_operations_of_an_mlp_are_two_for_each_weight():
    assert flops.count(mlp(50), IMAGES[:1]) == 2 * (64 * 50 + 50 * 10)


def test_operations_of_a_convolution_are_two_for_each_weight_and_place():
    assert flops.count(nn.Conv2d(3, 5, 3, bias=False), torch.zeros(1, 3, 8, 8)) == 2 * 5 * 3 * 9 * 36


@pytest.mark.parametrize(("teacher", "student"), [(300, 50), (8, 1200), (16, 16)])
def test_the_ratio_is_the_quotient_and_has_no_noise(teacher, student):
    timing = flops.measure(mlp(teacher), mlp(student), IMAGES)
    assert timing.ratio == timing.low == timing.high == pytest.approx(teacher / student)
    assert timing.student_seconds == 2 * student * 74
    assert (timing.kind, timing.pairs, timing.batch) == ("flops", 0, 1)


def test_the_batch_does_not_matter():
    assert flops.measure(mlp(300), mlp(50), IMAGES) == flops.measure(mlp(300), mlp(50), IMAGES[:1])


def test_the_decks_teacher_against_its_student_by_hand():
    teacher = networks.build_teacher("cnn", (1, 28, 28), 10)
    student = networks.student_family("mlp").build({"width": 300}, (1, 28, 28), 10)
    by_hand = (9 * 32 * 26**2 + 21632 * 1200 + 1200**2 + 12000) / (784 * 300 + 3000)
    assert flops.measure(teacher, student, torch.zeros(1, 1, 28, 28)).ratio == pytest.approx(by_hand)
