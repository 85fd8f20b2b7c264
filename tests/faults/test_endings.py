"""SIGTERM, Ctrl-C and Ctrl-C twice: the running trial is handed back, the exit code says what came."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from helpers.processes import children, lives, running, started, trials, until
from optuna.trial import TrialState

from kdsearch.records import HANDED_BACK, Attr

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("teacher")]
SLOW = ["--train-size=200", "--cost=flops", "--device=cpu", "--sampler=random", "--candidates=1", "--trials=3"]


@pytest.mark.parametrize(
    ("number", "workers", "code"), [(signal.SIGTERM, 1, 143), (signal.SIGINT, 1, 130), (signal.SIGTERM, 2, 143)]
)
def test_a_signal_hands_the_running_trials_back(
    number: int, workers: int, code: int, slow_study: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    words = ["optimize", f"--study={slow_study}", f"--workers={workers}", *SLOW]
    with started(*words, url=url, folder=tmp_path) as study:
        until(lambda: len(running(url)) == workers and trials(url)[0].params)
        began = time.monotonic()
        study.send_signal(number)
        assert study.wait(timeout=30) == code
        assert time.monotonic() - began < 10
    found = trials(url)
    assert not [trial for trial in found if trial.state == TrialState.RUNNING]
    back = [trial for trial in found if trial.state == TrialState.FAIL]
    assert [t.user_attrs[Attr.FAIL_REASON] for t in back] == [f"{HANDED_BACK}interrupted"] * workers
    waiting = {t.user_attrs.get(Attr.RETRY_OF): t for t in found if t.state == TrialState.WAITING}
    retry = waiting[0]
    assert retry.user_attrs[Attr.ANCHOR] == "m1"
    assert retry.system_attrs["fixed_params"] == back[0].params
    log = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert "Traceback" not in log
    assert "the same command goes on" in log


def test_a_second_ctrl_c_ends_at_once_and_the_next_run_tidies_up(slow_study: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    words = ["optimize", f"--study={slow_study}", "--workers=2", *SLOW]
    with started(*words, url=url, folder=tmp_path) as study:
        until(lambda: len(running(url)) == 2)
        workers = children(study)
        end = time.monotonic() + 3
        while study.poll() is None and time.monotonic() < end:
            study.send_signal(signal.SIGINT)  # a process that has not run since the first one gets two as one
            time.sleep(0.05)
        assert study.wait(timeout=0.1) == 130
        until(lambda: not any(map(lives, workers)), 3)
    with started(*words, url=url, folder=tmp_path) as study:
        until(lambda: len(running(url)) == 2 and not {*running(url)} & {*workers})
        study.send_signal(signal.SIGINT)
        assert study.wait(timeout=30) == 130
    assert not [trial for trial in trials(url) if trial.state == TrialState.RUNNING]
