from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd import DeviceType
from torch.nn import functional as F

from kdsearch import spec
from kdsearch.distil import train
from kdsearch.experiments.train_bench import paper_budget
from kdsearch.experiments.train_bench.paper_budget import Op

C5 = {"convolution": 38, "batch norm": 26, "casts": 5, "optimiser": 1, "rest": 63}


@pytest.fixture(scope="module")
def c5() -> list[Op]:
    shipped = spec.load(spec.shipped("cifar10"))
    config = shipped.anchors["c5"].config
    return paper_budget.step_of(paper_budget.student(config), shipped.student.recipe, config["batch_size"], taught=True)


def test_views_and_empty_memory_are_no_kernels_and_work_is_counted():
    weight, images = torch.rand(8, 4, 3, 3, requires_grad=True), torch.rand(2, 4, 8, 8)

    def call() -> None:
        F.conv2d(images, weight, padding=1).flatten(1).t()[0].sum().backward()

    ops = paper_budget.log(call)
    names = [op.name for op in ops]
    assert "convolution" in names[0]
    assert not {"view", "t", "select", "empty"} & set(names)
    forward, backward = (op for op in ops if op.kind == "convolution")
    assert forward.flops == backward.flops == 2 * 2 * 8 * 8 * 8 * 4 * 9
    assert (forward.kernels, backward.kernels) == (1, 1)  # the input wants no gradient
    assert forward.bytes == 4 * (weight.numel() + images.numel() + 2 * 8 * 8 * 8)
    assert paper_budget.seconds(ops) >= len(ops) * paper_budget.SECONDS_A_KERNEL


def test_a_step_of_c5_has_no_avoidable_kernels(c5: list[Op]):
    """13 convolutions, 25 gradients; casts of all weights, all gradients, the input, the logits and their gradient."""
    assert paper_budget.by_kind(c5) == C5
    names = [op.name for op in c5]
    assert names.count("_foreach_copy_") == 2
    assert names.count("add_") == 5  # residual sums and the running loss: no batch norm counts
    assert not {"index_select", "index", "_local_scalar_dense", "clone"} & set(names)


def test_the_reports_table_has_the_counts(c5: list[Op]):
    text = (Path(__file__).parents[3] / "reports" / "README.md").read_text()
    assert paper_budget.described("c5", c5) in text


@pytest.mark.slow
def test_the_reports_tables_are_what_the_budget_prints(capsys: pytest.CaptureFixture[str]):
    text = (Path(__file__).parents[3] / "reports" / "README.md").read_text()
    paper_budget.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(lines) == 12
    assert [line for line in lines if line not in text] == []


@pytest.mark.cuda
def test_the_device_runs_about_the_kernels_that_were_counted():
    """cuDNN adds reductions, workspaces and layouts of its own, our batch norm a kernel: less than twice the count.

    Counted on the CPU, where the dispatcher sees all; the profiler's events are kernels and the calls that launch them.
    """
    from torch.profiler import ProfilerActivity, profile

    from tests.distil.test_lean import RECIPE, lesson, student

    def step(device: str) -> Callable[[], None]:
        what = lesson()
        return train.Run(student().to(device), replace(what, data=what.data.to(torch.device(device))), RECIPE).sample()

    counted = sum(op.kernels for op in paper_budget.log(step("cpu")))
    take = step("cuda")
    take()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        take()
        torch.cuda.synchronize()
    launched = sum(event.count for event in seen.key_averages() if event.device_type == DeviceType.CUDA)
    assert counted / 2 <= launched <= 2 * counted
