"""The measured inference ratio of one sitting: teacher and student timed alternately, median of the paired ratios.

The number of pairs is fixed before the first one: stopping at a narrow interval, or keeping the narrowest of several
timings, would make intervals that cover less than they claim. The spread between sittings does not show within one: see
`kdsearch.sittings`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.records import Timing
from kdsearch.stats import Spread, median_interval, sittings_interval
from kdsearch.system import machine

Call = Callable[[], object]
Pairs = tuple[list[float], list[float]]
"""Seconds per batch of teacher and student, pair by pair."""

MIN_PAIRS = 7  # from 6 pairs on, the range of the ratios is a 95 % interval of their median
MAX_PAIRS = 31
# of one sitting, if MIN_PAIRS do not take longer: more sittings are better than longer ones. 31 pairs in 0.5 s on an
# H200 gave an interval of 0.3 % of the ratio, and sittings differed by as much
SITTING_SECONDS = {"cpu": 1.5, "cuda": 0.3}
SITTINGS, APART = 3, 2.0  # of a student that is timed by itself; seconds of rest between sittings
SAMPLE_SECONDS = 0.004  # a sample repeats a call for at least this long, below which the clock is noisy
SAMPLE_SHARE = 0.1  # and for this share of the other network's call, so that a brief disturbance weighs alike in both
ALONE_SECONDS = 0.001  # of a sample of single images: shorter than a busy machine's slices, so the median escapes them
WARM_UP_CALLS = 2
SLOW_SECONDS = 0.5  # a call that takes this long needs no further warm-up


def _seconds(call: Call, repeats: int, device: torch.device) -> float:
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
    """Return the seconds of a warm call; a slow one is called only once."""
    for _ in range(WARM_UP_CALLS):
        if (seconds := _seconds(call, 1, device)) > SLOW_SECONDS:
            return seconds
    return max(1e-7, min(_seconds(call, 1, device) for _ in range(3)))


def _pairs(
    teacher: Call, student: Call, device: torch.device, least: float = SAMPLE_SECONDS, most: int | None = None
) -> Pairs:
    """Return alternating samples of at least `least` seconds: as many as fit in `SITTING_SECONDS`, `most` at most."""
    once = _once(teacher, device), _once(student, device)
    sample = max(least, SAMPLE_SHARE * max(once))
    often = [math.ceil(sample / seconds) for seconds in once]
    fit = int(SITTING_SECONDS[device.type] / sum(times * seconds for times, seconds in zip(often, once, strict=True)))
    count = max(MIN_PAIRS, min(MAX_PAIRS if most is None else most, fit))
    pairs = [(_seconds(teacher, often[0], device), _seconds(student, often[1], device)) for _ in range(count)]
    return [of_teacher for of_teacher, _ in pairs], [of_student for _, of_student in pairs]


def sitting_seconds(teacher: float, device_type: str) -> float:
    """Estimate the seconds of a sitting.

    Args:
        teacher: seconds of its call on a batch, most of a pair.
        device_type: "cpu" or "cuda".
    """
    pair = (1 + SAMPLE_SHARE) * max(teacher, SAMPLE_SECONDS)
    fit = max(MIN_PAIRS, min(MAX_PAIRS, int(SITTING_SECONDS[device_type] / pair)))
    return fit * pair + 0.2  # 0.2: warm-up and single images


def several(take: Callable[[], Timing]) -> Timing:
    """Take `SITTINGS` sittings with rests between them; return Student's interval over these.

    This is for a student that is timed by itself, without other work of a study between the sittings.
    """
    timings = [take()]
    for _ in range(1, SITTINGS):
        time.sleep(APART)
        timings.append(take())
    return over_sittings(timings)


def over_sittings(timings: Sequence[Timing], pooled: Spread | None = None) -> Timing:
    """Combine the sittings of one student, with the interval over sittings (`stats.sittings_interval`).

    Args:
        timings: at least one; a single one keeps its own interval.
        pooled: spread between sittings, over all students that were timed alike.
    """
    if len(timings) == 1:
        return timings[0]
    found = sittings_interval([timing.ratio for timing in timings], pooled)
    assert found is not None  # two sittings have a spread of their own
    return dataclasses.replace(
        timings[-1],
        ratio=found.mean,
        low=found.low,
        high=found.high,
        teacher_seconds=statistics.median(timing.teacher_seconds for timing in timings),
        student_seconds=statistics.median(timing.student_seconds for timing in timings),
        pairs=sum(timing.pairs for timing in timings),
    )


def compare(teacher: Call, student: Call, *, batch: int, kind: str, alone: tuple[Call, Call] | None = None) -> Timing:
    """Measure the ratio of two calls on the CPU, in any runtime, alternately, with freed memory kept between them.

    Args:
        teacher, student: one inference of a batch each.
        batch: its number of images.
        kind: name of the method in the timing.
        alone: one inference of a single image each, timed too if given.
    """
    machine.keep_freed_memory()
    cpu = torch.device("cpu")
    pairs = _pairs(teacher, student, cpu)
    return _timing(pairs, alone and _pairs(*alone, cpu, ALONE_SECONDS), batch=batch, kind=kind)


def _timing(pairs: Pairs, alone: Pairs | None, *, batch: int, kind: str, eager: Pairs | None = None) -> Timing:
    ratio, low, high = median_interval(ratios(*pairs))
    teacher, student = map(statistics.median, pairs)
    return Timing(
        ratio, low, high, teacher, student, batch=batch, pairs=len(pairs[0]), kind=kind,
        eager_ratio=eager and statistics.median(ratios(*eager)),
        teacher_seconds_1=alone and statistics.median(alone[0]),
        student_seconds_1=alone and statistics.median(alone[1]),
    )  # fmt: skip


def ratios(of_teacher: Sequence[float], of_student: Sequence[float]) -> list[float]:
    """Return the teacher's seconds / the student's, pair by pair."""
    return [t / s for t, s in zip(of_teacher, of_student, strict=True)]


def _graphed(network: nn.Module, batch: Tensor) -> Call:
    """Return a forward pass as a CUDA graph, which is what a deployed runtime replays."""
    static = batch.clone()
    side = machine.side_stream(machine.cuda_index(batch.device))
    side.wait_stream(torch.cuda.current_stream(batch.device))
    with torch.cuda.stream(side):
        for _ in range(3):
            network(static)
    torch.cuda.current_stream(batch.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with machine.capture(graph, side):
        network(static)

    def replay() -> None:
        assert static.numel()  # the graph reads this memory, which has to live as long as the graph
        graph.replay()

    return replay


Key = tuple[object, ...]
_captured: WeakKeyDictionary[nn.Module, dict[Key, Call]] = WeakKeyDictionary()


def _once_a_process(network: nn.Module, batch: Tensor, capture: Callable[[nn.Module, Tensor], Call]) -> Call:
    """Return the captured forward pass of a network that is timed again and again: the teacher.

    It is captured anew for a batch of another form, and where its weights lie elsewhere than a graph would read them;
    graphs of weights that have moved are dropped.
    """
    tensors = (*network.parameters(), *network.buffers())
    weights = (batch.device, *(tensor.data_ptr() for tensor in tensors))
    form = (batch.shape, batch.stride(), batch.dtype)
    kept = {key: call for key, call in _captured.get(network, {}).items() if key[0] == weights}
    if (weights, form) not in kept:
        kept[weights, form] = capture(network, batch)
    _captured[network] = kept
    return kept[weights, form]


def _layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """Of a network that is timed: on CUDA convolutions want channels last, and whoever deploys one gives them that."""
    convolves = networks.has_layer(network, nn.Conv2d)
    return torch.channels_last if convolves and device.type == "cuda" else torch.contiguous_format


def _ready(network: nn.Module, batch: Tensor) -> Tensor:
    """Put a network in evaluation mode, and lay it out however training did; return the batch as it reads it."""
    layout = _layout(network, batch.device)
    network.eval().to(memory_format=layout)  # type: ignore[call-overload]
    return batch.contiguous(memory_format=layout) if batch.ndim == 4 else batch


@contextmanager
def _inference(device: torch.device) -> Iterator[None]:
    machine.keep_freed_memory()
    with torch.inference_mode(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


def measure(teacher: nn.Module, student: nn.Module, batch: Tensor) -> Timing:
    """Measure the inference ratio, teacher time / student time, on one batch.

    Interleaved, warmed up and synchronised, with freed memory kept (`machine.keep_freed_memory`) as training keeps it:
    else the MNIST teacher's call takes 0.83 s in a fresh process and 0.68 s in one that has trained. On a CPU the calls
    are eager, with as many threads as the caller has set; on CUDA the ratio is of replayed graphs, channels last where
    a network convolves, with that of a few eager calls beside it; the teacher's graph is captured once a process. A
    replay finds in the GPU's L2 cache what fits there of weights and of the one batch, as a server under load would. A
    single image is timed in the same way after the batch.

    Args:
        teacher, student: on the batch's device; left in evaluation mode.
        batch: (batch, channels, height, width), the networks' input.
    """
    device = batch.device
    for_teacher, for_student = _ready(teacher, batch), _ready(student, batch)
    one_teacher, one_student = for_teacher[:1], for_student[:1]
    eager = None
    with _inference(device):
        if device.type == "cuda":
            # the eager ratio only stands beside the one that counts
            eager = _pairs(lambda: teacher(for_teacher), lambda: student(for_student), device, most=MIN_PAIRS)
            of_teacher, of_one = (_once_a_process(teacher, part, _graphed) for part in (for_teacher, one_teacher))
            timed = _pairs(of_teacher, _graphed(student, for_student), device)
            alone = _pairs(of_one, _graphed(student, one_student), device, ALONE_SECONDS)
        else:
            timed = _pairs(lambda: teacher(for_teacher), lambda: student(for_student), device)
            alone = _pairs(lambda: teacher(one_teacher), lambda: student(one_student), device, ALONE_SECONDS)
    return _timing(timed, alone, batch=len(batch), kind="latency", eager=eager)


def eager_pairs(teacher: nn.Module, student: nn.Module, batch: Tensor, *, to_host: bool) -> Pairs:
    """Measure eager forward passes of teacher and student alternately, as the slide deck timed inference.

    Args:
        teacher, student, batch: see `measure`.
        to_host: whether copying the predictions, (batch,), to the host is timed, too.
    """

    def call(network: nn.Module) -> Call:
        images = _ready(network, batch)
        return lambda: network(images).argmax(1).cpu() if to_host else network(images)

    calls = call(teacher), call(student)
    with _inference(batch.device):
        return _pairs(*calls, batch.device)
