"""A server that is away in mid-study, and a clock that jumps."""

from __future__ import annotations

import time
from pathlib import Path

import optuna
import pytest
from helpers.postgres import Server
from helpers.processes import SHORT, assert_whole, finished, started, trials, until

from kdsearch.records import Attr
from kdsearch.search.workers import slots


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.usefixtures("teacher")
def test_workers_wait_for_a_server_that_is_away(server: Server, tmp_path: Path) -> None:
    words = ["optimize", "--trials=30", "--workers=2", "--name=away", *SHORT]
    with started(*words, url=server.url, folder=tmp_path) as study:
        until(lambda: finished(server.url, "away") >= 5)
        kept = {t.number: t.values for t in trials(server.url, "away") if t.state.is_finished()}
        server.stop("fast")
        try:
            time.sleep(20)
            assert study.poll() is None
        finally:
            server.start()
        assert study.wait(timeout=300) == 0
    found = trials(server.url, "away")
    assert_whole(found, wanted=30)
    assert {number: found[number].values for number in kept} == kept
    log = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert "the storage does not answer; waiting for it" in log
    assert "open-sesame" not in log


@pytest.mark.slow
def test_a_clock_that_jumps_fails_no_live_trial_and_a_silent_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study()
    trial = study.ask()
    elsewhere = {**slots.myself(), "host": "far", "machine": "far", "pid": 1}
    trial.set_user_attr(Attr.WORKER, elsewhere)
    watch = slots.Watch(every=0.1, missed=4)
    shift = [0.0]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])

    def look(seconds: float) -> list[str]:
        end, found = time.monotonic() + seconds, []
        while time.monotonic() < end:
            found += [reason for _, reason in watch.abandoned(study.get_trials(deepcopy=False), time.monotonic())]
            time.sleep(0.02)
        return found

    with slots.beating(study, trial._trial_id, every=0.1):
        for jump in (0, -3600, 3600):
            shift[0] += jump
            assert look(0.8) == []
    assert set(look(1.0)) == {"process 1 on far gave no sign for 0.4 s"}
