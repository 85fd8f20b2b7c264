from __future__ import annotations

import dataclasses
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from kdsearch.data import ImageSet
from kdsearch.errors import KdsearchError
from kdsearch.measure import deployed
from kdsearch.measure.gate import Gate
from kdsearch.search.plan import Plan, make_plan
from kdsearch.search.run_options import Request
from kdsearch.search.workshop import Workshop


def test_bytes_in_give_the_logits_of_prepared_images(workshop: Workshop):
    images, network = workshop.split.test.images[:50], workshop.teacher.network
    found = deployed.Prepared(network, workshop.split)(images)
    torch.testing.assert_close(found, network(workshop.split.prepare(images)))


@pytest.mark.parametrize("name", deployed.NEEDS)
def test_a_missing_package_is_one_line_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(KdsearchError, match=rf"--cost onnx needs .*got no {name}.*pip install 'kdsearch\[onnx\]'"):
        make_plan(Request(dataset="digits", cost="onnx"))


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_a_wider_student_is_slower_there_and_the_key_names_the_runtime(plan: Plan, workshop: Workshop):
    there = Workshop(plan.spec, plan.split, workshop.teacher, "onnx")
    narrow, wide = ({**next(iter(plan.spec.anchors.values())).config, "width": width} for width in (10, 2000))
    assert there.measure(there.build(narrow, 0)).ratio > there.measure(there.build(wide, 0)).ratio
    assert deployed.version() in there.timing_key(narrow)
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
