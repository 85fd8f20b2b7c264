from __future__ import annotations

import sys

import pytest
import torch

from kdsearch.errors import KdsearchError
from kdsearch.measure import deployed
from kdsearch.search.objective import Workshop
from kdsearch.search.plan import Plan, make_plan


def test_bytes_in_give_the_logits_of_prepared_images(workshop: Workshop):
    images, network = workshop.split.test.images[:50], workshop.teacher.network
    found = deployed.Prepared(network, workshop.split)(images)
    torch.testing.assert_close(found, network(workshop.split.prepare(images)))


@pytest.mark.parametrize("name", deployed.NEEDS)
def test_a_missing_package_is_one_line_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(KdsearchError, match=rf"--cost onnx needs .*got no {name}.*pip install 'kdsearch\[onnx\]'"):
        make_plan(dataset="digits", cost="onnx")


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
def test_a_wider_student_is_slower_there_and_the_key_names_the_runtime(plan: Plan, workshop: Workshop):
    there = Workshop(plan.spec, plan.split, workshop.teacher, "onnx")
    narrow, wide = ({**next(iter(plan.spec.anchors.values())).config, "width": width} for width in (10, 2000))
    assert there.measure(there.build(narrow, 0)).ratio > there.measure(there.build(wide, 0)).ratio
    assert deployed.version() in there.timing_key(narrow)
    assert there.timing_key(narrow) != workshop.timing_key(narrow)
