"""Real processes of the command line for tests of faults, and what a study must hold whatever happened to them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from kdsearch import storage
from kdsearch.records import Attr
from kdsearch.search.budget import is_finished

SHORT = ["--train-size=200", "--max-epochs=2", "--cost=flops", "--device=cpu", "--sampler=random", "--candidates=1"]
PATIENCE = 300.0  # seconds; a machine that tests is busy
TESTS = Path(__file__).parents[1]


def start(*words: str, url: str, folder: Path) -> subprocess.Popen[bytes]:
    """Starts `kdsearch` on a storage; its stderr goes to `folder`/PID.log."""
    environment = {**os.environ, "OPTUNA_STORAGE": url, "OMP_NUM_THREADS": "1"}
    log = folder / f"{time.monotonic_ns()}.log"
    with log.open("wb") as errors:
        command = [sys.executable, "-m", "kdsearch", *words]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


@contextmanager
def started(*words: str, url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`start`, and the process is gone at the end whatever a test finds."""
    process = start(*words, url=url, folder=folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits until something is true.

    Raises:
        AssertionError: it did not become so in time.
    """
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true after {seconds} s"
        time.sleep(0.1)


def trials(url: str, name: str = "digits") -> list[FrozenTrial]:
    """The study's trials as they are stored now; none while there is no study."""
    return _read(storage.open_storage(url), name)


def _read(backend: BaseStorage, name: str) -> list[FrozenTrial]:
    try:
        return optuna.load_study(study_name=name, storage=backend).get_trials(deepcopy=False)
    except KeyError:
        return []
    finally:
        backend.remove_session()
        engine = getattr(getattr(backend, "_backend", backend), "engine", None)  # a cached storage has it within
        if engine is not None:
            engine.dispose()  # an open file would keep its log


@cache
def _reader(url: str) -> BaseStorage:
    """What looks at a storage again and again: made once, for that costs more than many looks."""
    return optuna.storages.get_storage(storage.open_storage(url, log=False))


def peek(url: str, name: str = "digits") -> list[FrozenTrial]:
    """As `trials`, for who looks often beside processes that want the cores: each trial that has ended is read once."""
    return _read(_reader(url), name)


def finished(url: str, name: str = "digits") -> int:
    """How many finished trials the study holds."""
    return sum(map(is_finished, peek(url, name)))


def running(url: str, name: str = "digits") -> list[int]:
    """The processes that run a trial now, as the trials say."""
    found = [t for t in peek(url, name) if t.state == TrialState.RUNNING and Attr.WORKER in t.user_attrs]
    return [trial.user_attrs[Attr.WORKER]["pid"] for trial in found]


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that a process has started and that still run."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(process.pid)], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(pid) for pid, state in rows if not state.startswith("Z")]


def lives(pid: int) -> bool:
    """Whether a process is there and no corpse."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(listed.stdout.strip()) and not listed.stdout.strip().startswith("Z")


def assert_whole(found: list[FrozenTrial], *, wanted: int, anchors: int = 9) -> None:
    """Exactly N finished, every anchor once, nothing left running, numbers from 0 on without a gap."""
    assert sum(map(is_finished, found)) == wanted
    assert [trial.number for trial in found] == list(range(len(found)))
    assert not [trial.number for trial in found if trial.state == TrialState.RUNNING]
    complete = Counter(t.user_attrs.get(Attr.ANCHOR) for t in found if t.state == TrialState.COMPLETE)
    complete.pop(None, None)
    assert len(complete) == anchors
    assert set(complete.values()) <= {1}
