from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path

import torch

from kdsearch.measure.gate import Gate

CPU = torch.device("cpu")


def train(gate: Gate, over: threading.Event, steps: list[float]) -> None:
    with gate.working():
        while not over.is_set():
            gate.step()
            steps.append(time.monotonic())
            time.sleep(0.002)


def test_a_timing_waits_for_a_pause_between_two_steps_and_nobody_steps_meanwhile(tmp_path: Path) -> None:
    over = threading.Event()
    gates = [Gate(CPU, tmp_path) for _ in range(2)]
    steps: list[list[float]] = [[], []]
    threads = [threading.Thread(target=train, args=(gate, over, each)) for gate, each in zip(gates, steps, strict=True)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    with Gate(CPU, tmp_path).alone():
        begin = time.monotonic()
        time.sleep(0.15)
        end = time.monotonic()
    time.sleep(0.1)
    over.set()
    for thread in threads:
        thread.join(timeout=10)
    for gate, each in zip(gates, steps, strict=True):
        assert [step for step in each if begin < step < end] == []
        assert each[0] < begin
        assert each[-1] > end
        assert gate.paused >= 0.1


def test_two_timings_do_not_overlap(tmp_path: Path) -> None:
    spans: list[tuple[float, float]] = []

    def measure() -> None:
        with Gate(CPU, tmp_path).alone():
            begin = time.monotonic()
            time.sleep(0.05)
            spans.append((begin, time.monotonic()))

    threads = [threading.Thread(target=measure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans.sort()
    assert len(spans) == 3
    assert all(earlier[1] <= later[0] for earlier, later in pairwise(spans))


def test_a_folder_that_cannot_be_had_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    first, second = (Gate(CPU, tmp_path / "file") for _ in range(2))
    done: list[str] = []

    def both() -> None:
        with first.alone(), second.working():
            second.step()
            done.append("a step beside a timing")
        with first.alone(), second.alone():
            done.append("two timings")

    thread = threading.Thread(target=both, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert done == ["a step beside a timing", "two timings"]


def test_a_step_outside_working_leaves_no_lock_behind(tmp_path: Path) -> None:
    idle, timer = Gate(CPU, tmp_path), Gate(CPU, tmp_path)
    done: list[str] = []

    def both() -> None:
        with timer.alone():
            idle.step()  # of a training that does not take part: it neither waits nor comes to hold a lock
        with timer.alone():
            done.append("timed again")

    thread = threading.Thread(target=both, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert done == ["timed again"]


def test_working_within_working_holds_until_the_outer_one_ends(tmp_path: Path) -> None:
    gate = Gate(CPU, tmp_path)
    spans: list[float] = []

    def measure() -> None:
        with Gate(CPU, tmp_path).alone():
            spans.append(time.monotonic())

    with gate.working():
        with gate.working():
            pass
        thread = threading.Thread(target=measure, daemon=True)
        thread.start()
        time.sleep(0.1)
        end = time.monotonic()
        assert not spans  # the timing waits still
    thread.join(timeout=10)
    assert spans
    assert spans[0] >= end
