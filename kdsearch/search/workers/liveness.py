"""Liveness of the process that runs a trial, and the beat by which other machines recognise it."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from kdsearch.records import Attr

BEAT = 10  # seconds between two beats of a running trial
MISSED = 6  # beats, after which the trial counts as abandoned


@cache
def machine() -> str:
    """Return an identifier of the scope of process ids: this boot of this machine and its pid namespace."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> int | None:
    """Return a process's start time in system ticks, which distinguishes reused ids; None if it is dead."""
    if not Path("/proc/self/stat").is_file():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return 0
    try:
        # the name, in brackets, may contain anything
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def myself() -> dict[str, Any]:
    """Return the identity of this process, as stored with a trial."""
    return {"host": platform.node(), "machine": machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_gone(worker: dict[str, Any] | None) -> bool:
    """Return whether a trial's worker ran on this machine and is dead; unknown, so False, for other machines."""
    if not worker or worker.get("machine") != machine():
        return False
    return bool(_started(worker["pid"]) != worker["started"])


def name(worker: dict[str, Any] | None) -> str:
    """Describe a worker in words."""
    return f"process {worker['pid']} on {worker['host']}" if worker else "a worker that had not begun"


@contextmanager
def beating(study: Study, trial_id: int, every: float = BEAT) -> Iterator[None]:
    """Run the body while the beat of a running trial is counted up in the storage.

    Optuna's heartbeat exists only in relational storages and depends on the machines' clocks. A counter needs no clock,
    and works in any storage.
    """
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(every):
            count += 1
            try:
                study._storage.set_trial_user_attr(trial_id, Attr.BEAT, count)
            except UpdateFinishedTrialError:
                break
            except Exception:
                continue
        study._storage.remove_session()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=1)


class Watch:
    """Finds running trials whose worker is gone.

    On this machine the system tells immediately. On other machines the beat must be unchanged over several looks, which
    only count a while apart by this process's monotonic clock. So neither a clock that jumps nor a storage that was
    away fails a live trial.

    Args:
        every: seconds between two looks that count.
        missed: looks at an unchanged beat.
    """

    def __init__(self, every: float = BEAT, missed: int = MISSED) -> None:
        self._every, self._missed = every, missed
        self._seen: dict[int, tuple[Any, int]] = {}
        self._next = 0.0

    def abandoned(self, trials: Sequence[FrozenTrial], now: float) -> list[tuple[FrozenTrial, str]]:
        """Return the abandoned ones among a study's trials, each with the reason.

        Args:
            trials: of the study, as just read.
            now: seconds of a monotonic clock.
        """
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        dead = [trial for trial in running if is_gone(trial.user_attrs.get(Attr.WORKER))]
        found = [(trial, f"{name(trial.user_attrs[Attr.WORKER])} died") for trial in dead]
        if now < self._next:
            return found
        self._next = now + self._every
        self._seen = {trial._trial_id: self._look(trial) for trial in running}
        silent = [trial for trial in running if self._seen[trial._trial_id][1] >= self._missed and trial not in dead]
        seconds = f"{self._every * self._missed:g} s"
        return found + [(t, f"{name(t.user_attrs.get(Attr.WORKER))} gave no sign for {seconds}") for t in silent]

    def _look(self, trial: FrozenTrial) -> tuple[Any, int]:
        sign = trial.user_attrs.get(Attr.WORKER), trial.user_attrs.get(Attr.BEAT), len(trial.user_attrs)
        before, missed = self._seen.get(trial._trial_id, (None, 0))
        return sign, missed + 1 if sign == before else 0
