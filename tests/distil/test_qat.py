from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdsearch import networks
from kdsearch.distil.qat import FakeQuantised, QuantisedFeatures, convert, prepare
from kdsearch.distil.teacher import Teacher
from kdsearch.measure import onnx
from kdsearch.networks.resnet import StudentResNet
from kdsearch.search.plan import Plan

pytestmark = pytest.mark.slow  # importing torchao and exporting take seconds


def student(kind: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A student, images and labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "mlp":
            images = torch.rand(96, 1, 8, 8)
            network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))
        else:
            images = torch.rand(96, 3, 16, 16)
            network = StudentResNet(3, 10, width=8, blocks=[1, 1], stride=1)
    return network, images, (images.flatten(1).sum(1) * 7).long() % 10


@pytest.fixture(scope="module", params=["mlp", "resnet"])
def trained(request: pytest.FixtureRequest) -> tuple[FakeQuantised, nn.Module, torch.Tensor]:
    network, images, labels = student(request.param)
    quantised = prepare(network, images[:2])
    optimizer = torch.optim.Adam(quantised.parameters(), lr=3e-3, fused=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(quantised(images), labels).backward()
            optimizer.step()
    return quantised, network, images


def test_preparing_leaves_the_student_alone_and_starts_from_its_weights():
    network, images, _ = student("mlp")
    before = copy.deepcopy(network.state_dict())
    quantised = prepare(network, images[:2])
    named = {name.removeprefix("graph."): value for name, value in quantised.named_parameters()}
    assert named.keys() == before.keys()
    assert all(torch.equal(named[key], before[key]) for key in before)
    assert all(torch.equal(network.state_dict()[key], before[key]) for key in before)


def test_training_changes_it_and_evaluation_is_repeatable(trained):
    quantised, network, images = trained
    quantised.eval()
    state = copy.deepcopy(quantised.state_dict())
    with torch.no_grad():
        first, again = quantised(images), quantised(images * 3)  # larger inputs: an observer would widen its range
        assert not torch.equal(first, again)
        assert torch.equal(first, quantised(images))
    ranges = [key for key in state if key.endswith(("min_val", "max_val")) and state[key].ndim == 0]
    assert ranges
    assert all(torch.equal(state[key], quantised.state_dict()[key]) for key in ranges)
    assert not torch.equal(next(quantised.parameters()), next(network.parameters()))


def test_what_is_deployed_is_what_was_trained_and_runs_in_int8(trained, tmp_path):
    quantised, _, images = trained
    quantised.eval()
    path = onnx.write(convert(quantised, images[:2]), images[:2], tmp_path / "int8.onnx")
    assert sum(onnx.float_products(path, images[:2]).values()) == 0
    found = onnx.logits(onnx.session(path), images)
    with torch.no_grad():
        expected = quantised(images)
    assert (found.argmax(1) == expected.argmax(1)).float().mean().item() >= 0.9
    assert (found - expected).abs().mean().item() < 0.1 * expected.std().item()


def test_weights_have_seven_bits(trained):
    quantised, _, images = trained
    graph = convert(quantised.eval(), images[:2])
    frozen = [value for value in graph.state_dict().values() if value.dtype == torch.int8]
    assert frozen
    assert all(int(value.abs().max()) == 63 for value in frozen)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_a_teachers_features_lie_on_their_levels(plan: Plan, teacher: Teacher, bits: int):
    images = plan.split.prepare(plan.split.test.images[:50])
    with torch.no_grad():
        logits, features = networks.with_embedding(teacher.network, images)
        top = features.max().item()
        quantised = QuantisedFeatures(teacher.network, top, bits).eval()
        step = top / (2**bits - 1)
        expected = networks.classifier(teacher.network)((features / step).round() * step)
        torch.testing.assert_close(quantised(images), expected, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(teacher.network(images), logits)  # it is as it was
        assert (quantised(images) - logits).abs().max().item() > 0
