"""Workers that are killed, supervisors that are killed or start together: nothing is lost, and exactly N finish."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.postgres import Server
from helpers.processes import SHORT, TESTS, assert_whole, children, finished, lives, running, started, trials, until

from kdsearch.records import Attr, was_handed_back

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("teacher")]  # trained once, before any worker wants it
TRIALS = 60
SPREAD = 40  # of these, over which the kills are spread
KILLS = int(os.environ.get("KDSEARCH_KILLS", "8"))
RECIPE = TESTS.parent / "studies" / "slurm.sh"


def check_file(url: str) -> None:
    """sqlite's own check of a file, which is one file again."""
    path = Path(url.removeprefix("sqlite:///"))
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert not path.with_name(path.name + "-wal").exists()


def kill_some(study: subprocess.Popen[bytes], url: str, kills: int) -> int:
    """Kills random workers in the middle of their trials, spread over the study's first trials; how many.

    A kill is due by the number of finished trials. Where these run ahead, the kills follow one upon the other until no
    worker is left to finish any: so trials of any length last for all kills.
    """
    chosen, killed = random.Random(0), set[int]()
    while len(killed) < kills:
        due = 1 + len(killed) * SPREAD // kills
        until(lambda due=due: finished(url) >= due or study.poll() is not None)
        alive: list[int] = []
        # who was killed a moment ago still stands in the storage as running
        until(lambda alive=alive: alive.extend(set(running(url)) - killed) or alive or study.poll() is not None)
        if study.poll() is not None:
            break
        victim = chosen.choice(sorted(alive))
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
    return len(killed)


def test_killed_workers_lose_nothing(shared: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with started("optimize", f"--trials={TRIALS}", "--workers=4", *SHORT, url=shared, folder=tmp_path) as study:
        assert kill_some(study, shared, KILLS) == KILLS
        assert study.wait(timeout=300) == 0
    found = trials(shared)
    print(f"{KILLS} kills, {len(found)} trials, {time.monotonic() - began:.0f} s on {shared.partition(':')[0]}")
    assert_whole(found, wanted=TRIALS)
    back = {trial.number: trial for trial in found if was_handed_back(trial.user_attrs)}
    again = {t.user_attrs[Attr.RETRY_OF]: t for t in found if t.user_attrs.get(Attr.RETRY_OF) is not None}
    assert back
    for number, retry in again.items():
        same = {key: value for key, value in back[number].params.items() if key in retry.params}
        assert {key: retry.params[key] for key in same} == same
    if shared.startswith("sqlite"):
        check_file(shared)


def test_workers_end_with_their_supervisor_and_the_same_command_goes_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    words = ["optimize", "--trials=24", "--workers=2", *SHORT]
    with started(*words, url=url, folder=tmp_path) as study:
        until(lambda: finished(url) >= 3)
        workers = children(study)
        assert len(workers) == 2
        study.kill()
        study.wait()
        until(lambda: not any(map(lives, workers)), 12)
    kept = {t.number: t.values for t in trials(url) if t.state.is_finished() and t.values}
    assert 3 <= len(kept) < 24
    with started(*words, url=url, folder=tmp_path) as study:
        assert study.wait(timeout=300) == 0
    found = trials(url)
    assert_whole(found, wanted=24)
    assert {number: found[number].values for number in kept} == kept


def test_two_supervisors_that_start_at_once_share_the_work(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    words = ["optimize", "--trials=20", "--workers=2", *SHORT]
    with started(*words, url=url, folder=tmp_path) as one, started(*words, url=url, folder=tmp_path) as other:
        assert (one.wait(timeout=300), other.wait(timeout=300)) == (0, 0)
    found = trials(url)
    assert_whole(found, wanted=20)
    assert len({t.user_attrs[Attr.WORKER]["pid"] for t in found if Attr.WORKER in t.user_attrs}) > 1


@pytest.mark.postgres
def test_the_tasks_of_a_slurm_array_share_the_work(server: Server, tmp_path: Path) -> None:
    """The recipe as written, each task by a shell that has the variables that SLURM would pass on."""
    (tmp_path / ".kdsearch-storage").write_text(server.url + "\n")
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "NAME": "array",
        "TRIALS": "12",
    }
    tasks = [subprocess.Popen(["bash", RECIPE, *SHORT], cwd=tmp_path, env=environment) for _ in range(3)]
    assert [task.wait(timeout=300) for task in tasks] == [0, 0, 0]
    assert_whole(trials(server.url, "array"), wanted=12)
