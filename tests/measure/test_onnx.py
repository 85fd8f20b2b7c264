from __future__ import annotations

import dataclasses
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from kdsearch.data import ImageSet
from kdsearch.errors import KdsearchError
from kdsearch.measure import onnx
from kdsearch.measure.gate import Gate
from kdsearch.search.plan import Plan, make_plan
from kdsearch.search.run_options import Request
from kdsearch.search.workshop import Workshop

IMAGES = torch.rand(1203, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def mlp(width: int = 20) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 10))


@pytest.mark.slow  # the first export of a process imports for seconds
@pytest.mark.parametrize("count", [1, 7, 1203])
def test_the_file_gives_the_networks_logits_at_any_batch(tmp_path, count):
    network = mlp().train()
    path = onnx.write(network, IMAGES[:2], tmp_path / "x.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["x.onnx"]
    assert network.training  # it was copied
    found = onnx.logits(onnx.session(path), IMAGES[:count])
    with torch.no_grad():
        torch.testing.assert_close(found, network.eval()(IMAGES[:count]), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_float_products_are_seen(tmp_path):
    path = onnx.write(mlp(), IMAGES[:2], tmp_path / "x.onnx")
    assert onnx.float_products(path, IMAGES[:2]).total() == 2


@pytest.mark.slow
def test_a_larger_network_takes_longer(tmp_path):
    sessions = [onnx.session(onnx.write(mlp(width), IMAGES[:2], tmp_path / f"{width}.onnx")) for width in (4000, 10)]
    large, small = onnx.timed(sessions, IMAGES, rounds=5)
    assert len(large) == len(small) == 5
    assert sorted(large)[2] > 3 * sorted(small)[2]


def test_bytes_in_give_the_logits_of_prepared_images(workshop: Workshop):
    images, network = workshop.split.test.images[:50], workshop.teacher.network
    found = onnx.Prepared(network, workshop.split)(images)
    torch.testing.assert_close(found, network(workshop.split.prepare(images)))


@pytest.mark.parametrize("name", onnx.NEEDS)
def test_a_missing_package_is_one_line_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(KdsearchError, match=rf"--cost onnx needs .*got no {name}.*pip install 'kdsearch\[onnx\]'"):
        make_plan(Request(dataset="digits", cost="onnx"))


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_a_wider_student_is_slower_there_and_the_key_names_the_runtime(plan: Plan, workshop: Workshop):
    there = dataclasses.replace(workshop, cost="onnx")
    narrow, wide = ({**next(iter(plan.spec.anchors.values())).config, "width": width} for width in (10, 2000))
    assert there.measure(there.build(narrow, 0)).ratio > there.measure(there.build(wide, 0)).ratio
    assert onnx.version() in there.timing_key(narrow)
    assert there.timing_key(narrow) != workshop.timing_key(narrow)


@pytest.mark.parametrize(("cost", "shut"), [("onnx", True), ("latency", False)])
def test_a_timing_in_the_runtime_shuts_the_cpus_gate_wherever_students_are_trained(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cost: str, shut: bool
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # locks of this test's own
    train = ImageSet(workshop.split.train.images, workshop.split.train.labels.to("meta"))
    elsewhere = dataclasses.replace(workshop, split=dataclasses.replace(workshop.split, train=train), cost=cost)
    assert elsewhere.device.type == "meta"
    entered = threading.Event()

    def time_on_the_cpu() -> None:
        with Gate(torch.device("cpu")).alone():
            entered.set()

    other = threading.Thread(target=time_on_the_cpu)
    with elsewhere.quiet():
        other.start()
        assert entered.wait(0.3 if shut else 10) != shut
    assert entered.wait(10)
    other.join(10)
