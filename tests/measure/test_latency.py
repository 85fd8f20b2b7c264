from __future__ import annotations

import gc
import platform
import subprocess
import sys
import time
from functools import partial
from random import Random

import pytest
import torch
from torch import nn

from kdsearch import stats
from kdsearch.measure import latency
from kdsearch.records import Timing
from kdsearch.search import workshop as workshops
from kdsearch.search.workshop import Workshop


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


@pytest.mark.usefixtures("few_pairs")
def test_a_larger_teacher_gives_a_ratio_above_one_and_the_reverse_below_in_evaluation_mode():
    large, small, batch = mlp(3000).train(), mlp(30).train(), torch.zeros(200, 64)
    forth, back = latency.measure(large, small, batch), latency.measure(small, large, batch)
    assert not large.training
    assert not small.training
    assert forth.ratio > 3
    assert back.ratio < 1 / 3
    for timing in (forth, back):
        assert 0 < timing.low <= timing.ratio <= timing.high
        assert timing.pairs >= latency.MIN_PAIRS
        assert (timing.kind, timing.batch, timing.eager_ratio) == ("latency", 200, None)
    assert forth.teacher_seconds > forth.student_seconds > 0


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
        assert set(seen) == {(1, workshop.spec.latency.batch), (1, 1)}  # and a single image
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def timing(ratio: float) -> Timing:
    """One sitting that saw next to no noise."""
    return Timing(ratio, 0.99 * ratio, 1.01 * ratio, 2.0, 2.0 / ratio, 1000, 31, "latency")


class WildClock:
    """Time that passes only in calls, evenly while they warm up and with that noise from then on."""

    def __init__(self, noise: float) -> None:
        self.now, self._noise, self._random, self._calls = 0.0, noise, Random(0), 0

    def call(self, seconds: float) -> None:
        self._calls += 1
        warm = self._calls > 2 * (latency.WARM_UP_CALLS + 3)
        self.now += seconds * self._random.lognormvariate(0.0, self._noise if warm else 0.0)


def test_the_number_of_pairs_is_settled_before_the_first_one(monkeypatch: pytest.MonkeyPatch):
    """Whatever the ratios turn out to be, steady or wild: to stop on the interval's width would flatter it."""
    pairs = []
    for noise in (0.0, 3.0):
        clock = WildClock(noise)
        monkeypatch.setattr(time, "perf_counter", lambda clock=clock: clock.now)
        pairs.append(latency.compare(partial(clock.call, 0.04), partial(clock.call, 0.01), batch=1, kind="fake").pairs)
    monkeypatch.undo()
    assert pairs == [30, 30]  # in 1.5 s, at 0.04 s + 0.01 s a pair


def test_no_timing_is_chosen_for_its_width_and_sittings_have_students_interval(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latency, "APART", 0.0)
    left = iter([timing(10.0), timing(20.0), timing(15.0)])
    found = latency.several(lambda: next(left))
    assert next(left, None) is None
    expected = stats.sittings_interval([10.0, 20.0, 15.0])
    assert (found.ratio, found.low, found.high) == (expected.mean, expected.low, expected.high)
    assert found.high > 20.0  # the sittings' own intervals are 2 % wide
    assert found.pairs == 3 * 31


def test_one_sitting_is_one_timing(workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
    wide = Timing(10.0, 1.0, 100.0, 2.0, 0.2, 1000, 31, "latency")
    left = iter([wide, timing(10.0)])
    monkeypatch.setattr(workshops, "cost", lambda name: lambda teacher, student, batch: next(left))
    assert Workshop(workshop.spec, workshop.split, workshop.teacher, "latency").measure(nn.Flatten()) == wide


@pytest.mark.usefixtures("few_pairs")
def test_a_single_image_is_timed_beside_the_batch():
    found = latency.measure(mlp(3000), mlp(30), torch.zeros(500, 64))
    assert found.student_seconds / 500 < found.student_seconds_1 < found.student_seconds
    assert found.teacher_seconds_1 > found.student_seconds_1


def test_convolutions_are_timed_channels_last_on_cuda_and_as_they_were_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    convolution, cuda = nn.Conv2d(3, 4, 3), torch.device("cuda")
    assert latency._layout(convolution, cuda) is torch.channels_last
    assert latency._layout(mlp(8), cuda) is torch.contiguous_format
    assert latency._layout(convolution, torch.device("cpu")) is torch.contiguous_format
    monkeypatch.setattr(latency, "_layout", lambda network, device: torch.channels_last)
    batch = latency._ready(convolution.train(), torch.zeros(2, 3, 8, 8))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert not convolution.training


def test_the_teacher_is_captured_once_for_a_batch_and_where_its_weights_lie():
    captured: list[torch.Size] = []

    def capture(network: nn.Module, batch: torch.Tensor) -> latency.Call:
        captured.append(batch.shape)
        network(batch)
        return lambda: len(captured)

    teacher, other, batch = mlp(8), mlp(8), torch.zeros(4, 64)
    kept = [latency._once_a_process(teacher, part, capture) for part in (batch, batch[:1], batch, batch[:1].clone())]
    assert captured == [(4, 64), (1, 64)]
    assert (kept[0], kept[1]) == (kept[2], kept[3])
    latency._once_a_process(other, batch, capture)
    assert len(captured) == 3
    teacher[0].weight.data = teacher[0].weight.detach().clone()
    latency._once_a_process(teacher, batch, capture)
    assert len(captured) == 4
    assert len(latency._captured[teacher]) == 1
    count = len(latency._captured)
    del teacher
    gc.collect()
    assert len(latency._captured) == count - 1


@pytest.mark.cuda
def test_on_cuda_the_teachers_graphs_serve_all_students(monkeypatch: pytest.MonkeyPatch):
    captured: list[int] = []
    real = latency._graphed
    monkeypatch.setattr(latency, "_graphed", lambda *given: captured.append(id(given[0])) or real(*given))
    device = torch.device("cuda:0")
    teacher = mlp(2000).to(device)
    first, second = (
        latency.measure(teacher, mlp(30).to(device), torch.zeros(100, 64, device=device)) for _ in range(2)
    )
    assert captured.count(id(teacher)) == 2  # of the batch and of one image
    assert first.ratio == pytest.approx(second.ratio, rel=0.5)


@pytest.mark.cuda
@pytest.mark.slow
def test_on_cuda_the_ratio_is_of_graphs_with_the_eager_one_beside_it():
    device = torch.device("cuda:0")
    large, small = mlp(20000).to(device), mlp(30).to(device)
    timing = latency.measure(large, small, torch.zeros(1000, 64, device=device))
    assert timing.ratio > 1
    assert timing.low <= timing.ratio <= timing.high
    assert timing.eager_ratio > 0


def test_slow_networks_are_timed_less_often_but_enough_for_an_interval(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(latency.SITTING_SECONDS, "cpu", 0.0)
    assert latency.measure(mlp(8), mlp(8), torch.zeros(1, 64)).pairs == latency.MIN_PAIRS
    assert 2 * 0.5**latency.MIN_PAIRS <= 0.05  # the range of so few holds the median in 95 % of cases
    assert len(latency.eager_pairs(mlp(8), mlp(8), torch.zeros(1, 64), to_host=False)[0]) == latency.MIN_PAIRS


def test_a_sample_of_the_student_lasts_a_tenth_of_the_teachers_call(monkeypatch):
    monkeypatch.setitem(latency.SITTING_SECONDS, "cpu", 0.0)
    calls = []
    timing = latency.compare(
        lambda: time.sleep(0.08), lambda: time.sleep(0.002) or calls.append(1), batch=1, kind="sleep"
    )
    warm_up = latency.WARM_UP_CALLS + 3
    in_a_sample = (len(calls) - warm_up) / timing.pairs
    assert 0.5 * 0.008 <= in_a_sample * timing.student_seconds <= 2 * 0.008


@pytest.mark.parametrize(("teacher", "pairs"), [(0.0001, 31), (0.1, 13), (2.0, 7)])
def test_a_sitting_takes_as_long_as_its_pairs(monkeypatch: pytest.MonkeyPatch, teacher: float, pairs: int):
    clock = WildClock(0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    found = latency.compare(partial(clock.call, teacher), partial(clock.call, teacher / 100), batch=1, kind="fake")
    monkeypatch.undo()
    assert found.pairs == pytest.approx(pairs, abs=1)
    assert latency.sitting_seconds(teacher, "cpu") == pytest.approx(clock.now, rel=0.6)


FAULTS = """
import resource
import torch
from kdsearch.measure import latency

large = torch.zeros(16_000_000)  # its sum with something is a block of 64 MB

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        large + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
latency.measure(torch.nn.Identity(), torch.nn.Identity(), torch.zeros(1, 1, 2, 2))
for _ in range(5):
    faults()  # the heap grows to its size
print(min(faults() for _ in range(3)))  # another allocation may once have split the block
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by their own rules")
def test_a_timed_call_finds_the_memory_of_the_call_before():
    """Counted are pages that the system had to provide while a large block was made and freed a few times."""
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, timeout=120)
    given_back, kept = map(int, run.stdout.split())
    assert kept < 0.05 * given_back
