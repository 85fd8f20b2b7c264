from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

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


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operations_of_an_encoder_by_hand(device: str):
    places, width, inner = 8, 32, 64
    layer = nn.TransformerEncoderLayer(width, 4, inner, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).to(device)
    projections = 4 * places * width**2  # query, key, value and output
    attention = 2 * places**2 * width  # products with the keys and with the values, over all heads
    by_hand = 3 * 2 * (projections + attention + 2 * places * width * inner)
    images = torch.zeros(1, places, width, device=device)
    assert torch.backends.mha.get_fastpath_enabled()
    assert flops.count(encoder, images) == by_hand
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("fused", [True, False])
def test_operations_of_attention_are_those_of_its_matrix_products(device: str, fused: bool):
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x) if fused else (x @ x.mT).softmax(-1) @ x

    assert flops.count(Attention(), torch.zeros(1, 2, 8, 16, device=device)) == 2 * 2 * 2 * 8 * 8 * 16


@pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_operations_of_a_recurrent_layer_by_hand(kind: type[nn.RNNBase], gates: int, device: str):
    steps, inputs, hidden = 5, 8, 16
    network = kind(inputs, hidden, num_layers=2, bidirectional=True, batch_first=True).to(device)
    weights = gates * hidden * (inputs + hidden) + gates * hidden * (2 * hidden + hidden)  # of both layers
    assert flops.count(network, torch.zeros(1, steps, inputs, device=device)) == 2 * 2 * steps * weights


def test_the_kernel_of_cudnn_counts_as_the_layers_products():
    network = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True).to("meta")
    images, state = torch.zeros(1, 5, 8, device="meta"), torch.zeros(4, 1, 16, device="meta")
    weights = list(network._flat_weights)
    with FlopCounterMode(display=False, custom_mapping=flops.FUSED) as counter:
        torch.ops.aten._cudnn_rnn(
            images, weights, 4, None, state, state, 2, 16, 0, 2, True, 0.0, False, True, [], None
        )  # fmt: skip
    assert counter.get_total_flops() == flops.count(network, images)
