from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from kdsearch.measure import latency
from kdsearch.measure.latency import median_interval
from kdsearch.search.objective import Workshop


def test_the_median_and_its_order_statistics():
    # Conover's table for n = 15: the 4th smallest and the 4th largest value
    assert median_interval([float(v) for v in range(15, 0, -1)]) == (8, 4, 12)


@pytest.mark.parametrize("n", range(6, 80))
def test_the_interval_is_the_narrowest_that_covers_95_percent(n):
    _, low, high = median_interval([float(value) for value in range(1, n + 1)])
    k = int(low)
    assert high == n + 1 - k
    # the median lies below the k-th smallest of n values if fewer than k fall below it
    assert 1 - 2 * stats.binom.cdf(k - 1, n, 0.5) >= 0.95
    assert 1 - 2 * stats.binom.cdf(k, n, 0.5) < 0.95


def test_of_a_skewed_distribution_the_median_is_covered_as_often_as_promised():
    draws = np.random.default_rng(0).lognormal(size=(2000, 15))
    covered = [low <= 1.0 <= high for _, low, high in (median_interval(list(row)) for row in draws)]
    assert np.mean(covered) >= 0.95


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_interval_holds_the_median_and_knows_no_order(values, random):
    median, low, high = median_interval(values)
    assert min(values) <= low <= median <= high <= max(values)
    shuffled = values[:]
    random.shuffle(shuffled)
    assert median_interval(shuffled) == (median, low, high)


def test_below_six_values_the_interval_is_the_range():
    assert median_interval([3.0]) == (3, 3, 3)
    assert median_interval([5.0, 1.0, 2.0, 4.0, 3.0]) == (3, 1, 5)


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
        assert timed.measure(Spy()).batch == 1000
        assert set(seen) == {(1, 1000)}
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
