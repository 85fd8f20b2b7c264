from __future__ import annotations

import time

import optuna
import pytest
import torch
from torch import nn

from kdsearch.measure import latency
from kdsearch.progress import Progress
from kdsearch.records import Attr, Timing
from kdsearch.search import trial
from kdsearch.search.trial import Workshop


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


def timing(ratio: float, width: float) -> Timing:
    """One whose interval is `width` times as wide as its ratio is high."""
    return Timing(ratio, ratio * (1 - width / 2), ratio * (1 + width / 2), 1.0, 1 / ratio, 1000, 61, "latency")


@pytest.mark.parametrize(
    ("widths", "taken", "kept"),
    [
        ([0.09], 1, 0),  # narrow enough, whatever might follow
        ([0.5, 0.05], 2, 1),
        ([0.5, 0.3, 0.05], 3, 2),
        ([0.2, 0.5, 0.3], 3, 0),  # enough: the narrowest of them
        ([0.5, 0.2, 0.3], 3, 1),
    ],
)
def test_a_timing_whose_interval_is_too_wide_is_taken_again(widths: list[float], taken: int, kept: int):
    timings = [timing(10.0 + number, width) for number, width in enumerate(widths)]
    left = iter(timings)
    assert latency.steady(lambda: next(left)) is timings[kept]
    assert len(list(left)) == len(widths) - taken


def test_it_is_taken_again_before_it_is_stored_and_never_after(workshop: Workshop, monkeypatch):
    left = iter([timing(10.0, 0.5), timing(20.0, 0.3), timing(30.0, 0.4), timing(40.0, 0.01)])
    monkeypatch.setattr(trial, "cost", lambda name: lambda teacher, student, batch: next(left))
    timed = Workshop(workshop.spec, workshop.split, workshop.teacher, "latency")
    study = optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    stored: list[dict] = []
    for epochs in (1, 2):
        study.enqueue_trial({"width": 8, "loss_weight": 0.0, "epochs": epochs, "batch_size": 512})
        study.optimize(trial.Objective(timed, seed=0, progress=Progress()), n_trials=1)
        stored.append(study.trials[-1].user_attrs[Attr.TIMING])
    assert [found["ratio"] for found in stored] == [20.0, 20.0]  # wide as it is
    assert next(left).ratio == 40.0


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
