"""Who runs a trial, whether that process still lives, and the beat by which other machines can tell."""

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
MISSED = 6  # beats, after which nobody runs it any more


@cache
def machine() -> str:
    """Where process numbers mean the same: this boot of this machine and, in a container, its own numbering."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _started(pid: int) -> int | None:
    """When a process began, in the system's ticks, so that a number used again is told apart; None: it is dead."""
    if not Path("/proc/self/stat").is_file():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return 0
    try:
        # the name, in brackets, may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def myself() -> dict[str, Any]:
    """This process, as a trial says who runs it."""
    return {"host": platform.node(), "machine": machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_gone(worker: dict[str, Any] | None) -> bool:
    """Whether a trial's worker ran on this machine and is dead; of other machines this cannot be told."""
    if not worker or worker.get("machine") != machine():
        return False
    return bool(_started(worker["pid"]) != worker["started"])


def name(worker: dict[str, Any] | None) -> str:
    """A worker in words."""
    return f"process {worker['pid']} on {worker['host']}" if worker else "a worker that had not begun"


@contextmanager
def beating(study: Study, trial_id: int, every: float = BEAT) -> Iterator[None]:
    """Runs its body with a running trial's beat counted up in the storage.

    Not Optuna's heartbeat: that exists in relational storages alone, and tells its age by the clocks of machines. A
    count needs no clock, and any storage keeps it.
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
    """Finds the running trials that nobody runs any more.

    Of this machine the system tells at once. Of others the beat tells: it has to stand still over several looks, which
    only count a while apart by this process's own steady clock. So no clock that jumps fails a live trial, and neither
    does a storage that was away.

    Args:
        every: seconds between two looks that count.
        missed: beats.
    """

    def __init__(self, every: float = BEAT, missed: int = MISSED) -> None:
        self._every, self._missed = every, missed
        self._seen: dict[int, tuple[Any, int]] = {}
        self._next = 0.0

    def abandoned(self, trials: Sequence[FrozenTrial], now: float) -> list[tuple[FrozenTrial, str]]:
        """The abandoned ones among a study's trials, each with the reason.

        Args:
            trials: of the study, as just read.
            now: seconds of a clock that never goes back.
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
