"""Eight processes on one study: exactly N whatever their haste, and how long the storage takes for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from optuna.trial import TrialState
from processes import TESTS, assert_whole, trials
from simulated import NAME

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("teacher")]
WORKERS = 8


def timed(url: str, wanted: int, seconds: float, workers: int = WORKERS) -> float:
    """Seconds from the common start of the workers to the end of the last one."""
    words = [sys.executable, "-W", "ignore", TESTS / "simulated.py", url, str(wanted), str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    processes = [subprocess.Popen(words, **pipes) for _ in range(workers)]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * workers
        begin = time.monotonic()
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        assert [process.stdout.readline() for process in processes] == ["done\n"] * workers
        took = time.monotonic() - begin
        assert [process.wait(timeout=60) for process in processes] == [0] * workers
        return took
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_eight_processes_end_with_exactly_two_hundred(shared: str) -> None:
    took = timed(shared, 200, 0.0)
    found = trials(shared, NAME)
    assert_whole(found, wanted=200, anchors=0)
    assert {trial.state for trial in found} <= {TrialState.COMPLETE, TrialState.WAITING}
    print(f"{200 / took:.0f} trials a second on {shared.partition(':')[0]}")


if "KDSEARCH_SCALING" in os.environ:  # minutes of sleep, on a machine that does nothing else

    def test_eight_workers_are_eight_times_as_fast_on_trials_of_three_seconds(shared: str) -> None:
        share = 96 * 3.0 / WORKERS / timed(shared, 96, 3.0)
        print(f"{share:.1%} of perfect scaling on {shared.partition(':')[0]}")
        assert share >= (0.8 if shared.startswith("sqlite") else 0.9)
