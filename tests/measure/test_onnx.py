from __future__ import annotations

import pytest
import torch
from torch import nn

from kdsearch.measure import onnx

pytestmark = pytest.mark.slow  # the first export of a process imports for seconds


def mlp(width: int = 20) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 10))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(1203, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 7, 1203])
def test_the_file_gives_the_networks_logits_at_any_batch(images, tmp_path, count):
    network = mlp().train()
    path = onnx.write(network, images[:2], tmp_path / "x.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["x.onnx"]
    assert network.training  # it was copied
    found = onnx.logits(onnx.session(path), images[:count])
    with torch.no_grad():
        torch.testing.assert_close(found, network.eval()(images[:count]), atol=1e-5, rtol=1e-4)


def test_float_products_are_seen(images, tmp_path):
    path = onnx.write(mlp(), images[:2], tmp_path / "x.onnx")
    assert sum(onnx.float_products(path, images[:2]).values()) == 2


def test_a_larger_network_takes_longer(images, tmp_path):
    sessions = [onnx.session(onnx.write(mlp(width), images[:2], tmp_path / f"{width}.onnx")) for width in (4000, 10)]
    large, small = onnx.timed(sessions, images, rounds=5)
    assert len(large) == len(small) == 5
    assert sorted(large)[2] > 3 * sorted(small)[2]
