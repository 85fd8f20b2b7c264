"""The measured inference ratio: teacher and student timed in turn, medians of paired ratios, a 95 % interval."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from kdsearch.records import Timing
from kdsearch.stats import median_interval
from kdsearch.system import machine

Call = Callable[[], object]

MIN_PAIRS = 15
SLOW_PAIRS = 9  # are enough once the time is up: the second to the eighth ratio still hold the median in 96 % of cases
MAX_PAIRS = 61
MAX_SECONDS = 5.0  # of one measurement, once few pairs are in
TARGET_WIDTH = 0.04  # of the interval, relative to the median: narrow enough to stop
SAMPLE_SECONDS = 0.004  # a sample repeats a call until it lasts at least this long: the clock is noisy below
SAMPLE_SHARE = 0.1  # and this part of the other network's call: a moment of a busy machine is not what the other saw
WARM_UP_CALLS = 2
TOO_WIDE = 0.1  # of a timing's interval, relative to the ratio: it is taken again
MAX_TIMINGS = 3  # of one student
SLOW_SECONDS = 0.5  # a call of that length is warm after one


def _seconds(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds a call, of `repeats` calls in a row."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def _once(call: Call, device: torch.device) -> float:
    """Seconds of a warm call; one that is slow is not called again to see that."""
    for _ in range(WARM_UP_CALLS):
        if (seconds := _seconds(call, 1, device)) > SLOW_SECONDS:
            return seconds
    return max(1e-7, min(_seconds(call, 1, device) for _ in range(3)))


def _pairs(
    teacher: Call, student: Call, device: torch.device, least: int = MIN_PAIRS
) -> tuple[list[float], list[float]]:
    """Seconds of teacher and student, sampled in turn until the interval is narrow or time is up."""
    once = _once(teacher, device), _once(student, device)
    sample = max(SAMPLE_SECONDS, SAMPLE_SHARE * max(once))
    often = [math.ceil(sample / seconds) for seconds in once]
    of_teacher: list[float] = []
    of_student: list[float] = []
    begin = time.perf_counter()
    while len(of_teacher) < MAX_PAIRS:
        of_teacher.append(_seconds(teacher, often[0], device))
        of_student.append(_seconds(student, often[1], device))
        late = time.perf_counter() - begin > MAX_SECONDS
        if len(of_teacher) < (min(least, SLOW_PAIRS) if late else least):
            continue
        median, low, high = median_interval(ratios(of_teacher, of_student))
        if late or high - low <= TARGET_WIDTH * median:
            break
    return of_teacher, of_student


def steady(take: Callable[[], Timing]) -> Timing:
    """A timing; one whose interval is wide is taken again, a few times, and the narrowest is returned."""
    taken: list[Timing] = []
    while not taken or (_width(taken[-1]) > TOO_WIDE and len(taken) < MAX_TIMINGS):
        taken.append(take())
    return min(taken, key=_width)


def _width(timing: Timing) -> float:
    """Of a timing's interval, relative to the ratio."""
    return (timing.high - timing.low) / timing.ratio


def compare(teacher: Call, student: Call, *, batch: int, kind: str) -> Timing:
    """The ratio of two calls on the CPU, in any runtime, in turn, with freed memory kept between them.

    Args:
        teacher, student: one inference of a batch each.
        batch: its images.
        kind: what the timing is called.
    """
    machine.keep_freed_memory()
    of_teacher, of_student = _pairs(teacher, student, torch.device("cpu"))
    return summary(of_teacher, of_student, batch=batch, kind=kind)


def summary(of_teacher: Sequence[float], of_student: Sequence[float], *, batch: int, kind: str) -> Timing:
    """The ratio and its interval of seconds taken in pairs, at least one."""
    ratio, low, high = median_interval(ratios(of_teacher, of_student))
    middle = statistics.median(of_teacher), statistics.median(of_student)
    return Timing(ratio, low, high, *middle, batch=batch, pairs=len(of_teacher), kind=kind)


def ratios(of_teacher: Sequence[float], of_student: Sequence[float]) -> list[float]:
    """Teacher's seconds / student's, pair by pair."""
    return [t / s for t, s in zip(of_teacher, of_student, strict=True)]


def _graphed(network: nn.Module, batch: Tensor) -> Call:
    """One forward pass as a CUDA graph: what a deployed runtime replays."""
    static = batch.clone()
    side = torch.cuda.Stream(device=batch.device)
    side.wait_stream(torch.cuda.current_stream(batch.device))
    with torch.cuda.stream(side):
        for _ in range(3):
            network(static)
    torch.cuda.current_stream(batch.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        network(static)

    def replay() -> None:
        assert static.numel()  # the graph reads this memory: it has to live as long as the graph
        graph.replay()

    return replay


def _alike(*networks: nn.Module) -> None:
    """Evaluation mode, and weights laid out alike: training lays them out for its own speed."""
    for network in networks:
        network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def measure(teacher: nn.Module, student: nn.Module, batch: Tensor) -> Timing:
    """The inference ratio, teacher time / student time, on one batch.

    Interleaved, warmed up and synchronised, with freed memory kept (`runtime.keep_freed_memory`) as training keeps it:
    else the MNIST teacher's call takes 0.83 s in a fresh process and 0.68 s in one that has trained. On a CPU the calls
    are eager, with as many threads as the caller has set; on CUDA the ratio is of replayed graphs, with that of eager
    calls beside it.

    Args:
        teacher, student: on the batch's device; left in evaluation mode.
        batch: (batch, channels, height, width), the networks' input.
    """
    _alike(teacher, student)
    device = batch.device
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    machine.keep_freed_memory()
    with torch.inference_mode(), on_device:
        timed = eager = _pairs(lambda: teacher(batch), lambda: student(batch), device)
        if device.type == "cuda":
            timed = _pairs(_graphed(teacher, batch), _graphed(student, batch), device)
    found = summary(*timed, batch=len(batch), kind="latency")
    return found if timed is eager else dataclasses.replace(found, eager_ratio=statistics.median(ratios(*eager)))


def eager_pairs(
    teacher: nn.Module, student: nn.Module, batch: Tensor, *, to_host: bool, least: int = MIN_PAIRS
) -> tuple[list[float], list[float]]:
    """Seconds a batch of eager forward passes of teacher and student in turn: the slide deck's inference time.

    Args:
        teacher, student: on the batch's device; left in evaluation mode.
        batch: (batch, channels, height, width), the networks' input.
        to_host: whether bringing the predictions, (batch,), back to the host is part of it.
        least: pairs; more are taken while the interval is wide and time is left. From 6 on the range of the ratios is
            an interval of 95 % for their median.

    Returns:
        The teacher's seconds and the student's, pair by pair.
    """
    _alike(teacher, student)

    def call(network: nn.Module) -> Call:
        return lambda: network(batch).argmax(1).cpu() if to_host else network(batch)

    on_device = torch.cuda.device(batch.device) if batch.device.type == "cuda" else nullcontext()
    machine.keep_freed_memory()
    with torch.inference_mode(), on_device:
        return _pairs(call(teacher), call(student), batch.device, least)
