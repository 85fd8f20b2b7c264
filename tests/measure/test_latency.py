from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from kdsearch.measure import latency
from kdsearch.search.objective import Workshop


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


@pytest.mark.usefixtures("few_pairs")
def test_a_larger_teacher_gives_a_ratio_above_one_and_the_reverse_below():
    large, small, batch = mlp(3000), mlp(30), torch.zeros(200, 64)
    forth, back = latency.measure(large, small, batch), latency.measure(small, large, batch)
    assert forth.ratio > 3
    assert back.ratio < 1 / 3
    for timing in (forth, back):
        assert 0 < timing.low <= timing.ratio <= timing.high
        assert timing.pairs >= latency.MIN_PAIRS
        assert (timing.kind, timing.batch, timing.eager_ratio) == ("latency", 200, None)
    assert forth.teacher_seconds > forth.student_seconds > 0


@pytest.mark.usefixtures("few_pairs")
def test_networks_are_timed_in_evaluation_mode_and_left_there():
    teacher, student = mlp(8).train(), mlp(8).train()
    latency.measure(teacher, student, torch.zeros(1, 64))
    assert not teacher.training
    assert not student.training


@pytest.mark.usefixtures("few_pairs")
def test_a_study_times_with_its_own_threads_and_puts_them_back(workshop: Workshop):
    seen = []

    class Spy(nn.Flatten):
        def forward(self, images):
            seen.append((torch.get_num_threads(), len(images)))
            return super().forward(images)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        timed = Workshop(workshop.spec, workshop.split, workshop.teacher, "latency")
        assert timed.measure(Spy()).batch == workshop.spec.latency.batch
        assert set(seen) == {(1, workshop.spec.latency.batch)}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.cuda
@pytest.mark.slow
def test_on_cuda_the_ratio_is_of_graphs_with_the_eager_one_beside_it():
    device = torch.device("cuda:0")
    large, small = mlp(20000).to(device), mlp(30).to(device)
    timing = latency.measure(large, small, torch.zeros(1000, 64, device=device))
    assert timing.ratio > 1
    assert timing.low <= timing.ratio <= timing.high
    assert timing.eager_ratio is not None
    assert timing.eager_ratio > 0


def test_slow_networks_are_timed_less_often_but_enough_for_an_interval(monkeypatch):
    monkeypatch.setattr(latency, "MAX_SECONDS", 0.0)
    monkeypatch.setattr(latency, "TARGET_WIDTH", 0.0)
    timing = latency.measure(mlp(8), mlp(8), torch.zeros(1, 64))
    assert timing.pairs == latency.SLOW_PAIRS
    values = list(range(latency.SLOW_PAIRS))
    assert latency.median_interval(values) == (4, 1, 7)  # narrower than the range
    assert len(latency.eager_pairs(mlp(8), mlp(8), torch.zeros(1, 64), to_host=False, least=6)[0]) == 6


def test_a_sample_of_the_student_lasts_a_tenth_of_the_teachers_call(monkeypatch):
    monkeypatch.setattr(latency, "MAX_SECONDS", 0.0)
    calls = []
    timing = latency.compare(
        lambda: time.sleep(0.08), lambda: time.sleep(0.002) or calls.append(1), batch=1, kind="sleep"
    )
    warm_up = latency.WARM_UP_CALLS + 3
    in_a_sample = (len(calls) - warm_up) / timing.pairs
    assert 0.5 * 0.008 <= in_a_sample * timing.student_seconds <= 2 * 0.008
