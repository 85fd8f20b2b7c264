"""Eight processes on one study: exactly N whatever their haste, and how long the storage takes for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from helpers.processes import TESTS, assert_whole, trials
from helpers.simulated import NAME
from optuna.trial import TrialState

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("teacher")]
WORKERS = 8


def timed(url: str, wanted: int, seconds: float, workers: int = WORKERS) -> float:
    """Seconds from the common start of the workers to the end of the last one."""
    words = [
        sys.executable,
        "-W",
        "ignore",
        TESTS / "helpers" / "simulated.py",
        url,
        *map(str, (wanted, seconds, workers)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as crew:
        try:
            assert crew.stdout.readline() == "ready\n"
            begin = time.monotonic()
            crew.stdin.write("\n")
            crew.stdin.flush()
            assert crew.stdout.readline() == "done\n"
            took = time.monotonic() - begin
            assert crew.wait(timeout=60) == 0
            return took
        finally:
            with suppress(ProcessLookupError):
                os.killpg(crew.pid, signal.SIGKILL)


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
