"""Trial slots, of which workers run exactly N, and the liveness of the process that runs one.

A trial in the storage is a slot. It is *live* if it waits, runs, or finished and counts; a trial that failed or was
pruned before its first epoch is not live, and never becomes so again. In the order of their numbers, only the first N
live slots may be run. A worker reads all trials, picks a waiting one among these, and claims it by the storage's
compare-and-set from WAITING to RUNNING, which only one worker wins. If fewer than N slots are live it adds one.

Why no more than N finish: suppose N + 1 did, and let t be the one with the highest number. The other N have lower
numbers, so they existed when t was claimed (a storage numbers trials in order), and a trial that finishes was live all
the time. So the worker that claimed t saw N live slots before it, and was not allowed to claim it. Why no fewer: while
fewer than N have finished, a slot among the first N runs, waits to be claimed, or is missing and added.

Workers that add a slot at the same moment leave a few more than N; the surplus ones keep waiting and are not run.
"""

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
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdsearch.records import FIXED, HANDED_BACK, Attr
from kdsearch.search.budget import is_finished
from kdsearch.system import signals

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
    return {"host": platform.node(), "machine": machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def is_gone(worker: dict[str, Any] | None) -> bool:
    """Return whether a trial's worker ran on this machine and is dead; unknown, so False, for other machines."""
    if not worker or worker.get("machine") != machine():
        return False
    return bool(_started(worker["pid"]) != worker["started"])


def worker_name(worker: dict[str, Any] | None) -> str:
    return f"process {worker['pid']} on {worker['host']}" if worker else "a worker that had not begun"


def is_live(trial: FrozenTrial) -> bool:
    """Return whether a trial takes one of the N slots."""
    return trial.state in (TrialState.WAITING, TrialState.RUNNING) or is_finished(trial)


def has_work(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether a waiting trial has parameters to run: an anchor that is not a copy of another, or a retry.

    Supervisors that start at once may all enqueue the anchors: the lowest number counts, a copy is a free slot.
    """
    anchor = trial.user_attrs.get(Attr.ANCHOR)
    if anchor is None:
        return bool(trial.system_attrs.get(FIXED))
    return not any(
        is_finished(other) or (is_live(other) and other.number < trial.number)
        for other in trials
        if other.user_attrs.get(Attr.ANCHOR) == anchor and other.number != trial.number
    )


def claim(study: Study, wanted: int | None, trials: Sequence[FrozenTrial] | None = None) -> int | None:
    """Claim a trial for this process to run.

    Args:
        study: of the slots.
        wanted: N; None: no limit.
        trials: of the study, as read a moment ago. Outdated ones are safe: a live trial stays live or counts no more.
            None: they are read here.

    Returns:
        The trial's id in the storage; None if all N slots are taken or finished, of which one may still fail.
    """
    while True:
        found = study.get_trials(deepcopy=False) if trials is None else trials
        live = [trial for trial in found if is_live(trial)]
        waiting = [trial for trial in live[:wanted] if trial.state == TrialState.WAITING]
        with signals.shield():
            for slot in sorted(waiting, key=lambda trial: not has_work(trial, found)):
                if _take(study, slot):
                    _prepare(study, slot, found)
                    return slot._trial_id
        if wanted is not None and len(live) >= wanted:
            if not waiting:
                return None
        else:
            study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={Attr.WORKER: myself()}))
        trials = None


def _take(study: Study, slot: FrozenTrial) -> bool:
    """Compare-and-set the trial's state; return whether this process won.

    The worker's name is stored before, too: if the worker is killed right after, others can then tell at once.
    """
    name, me = Attr.WORKER, myself()
    try:
        if name not in slot.user_attrs:
            study._storage.set_trial_user_attr(slot._trial_id, name, me)
        won = study._storage.set_trial_state_values(slot._trial_id, TrialState.RUNNING)
        if won and slot.user_attrs.get(name) != me:  # another worker may have stored its own name since the look
            study._storage.set_trial_user_attr(slot._trial_id, name, me)
    except UpdateFinishedTrialError:
        return False
    return won


def _prepare(study: Study, slot: FrozenTrial, trials: Sequence[FrozenTrial]) -> None:
    """Give a claimed slot without parameters those of a trial that waits behind the first N, if there is one."""
    if has_work(slot, trials):
        return
    for trial in trials:
        waits = trial.state == TrialState.WAITING and trial.number != slot.number
        if waits and has_work(trial, trials) and _take(study, trial):
            _copy_work(study, slot, trial)
            fail(study, trial, f"its work was moved to trial {slot.number}")
            return
    if slot.system_attrs.get(FIXED):  # the copy of an anchor
        _copy_work(study, slot, None)


def _copy_work(study: Study, slot: FrozenTrial, source: FrozenTrial | None) -> None:
    attrs: dict[str, Any] = {} if source is None else source.user_attrs
    fixed = {} if source is None else source.system_attrs[FIXED]
    study._storage.set_trial_system_attr(slot._trial_id, FIXED, fixed)
    for name in (Attr.ANCHOR, Attr.RETRY_OF, Attr.RESUMES):
        if name in attrs or name in slot.user_attrs:
            study._storage.set_trial_user_attr(slot._trial_id, name, attrs.get(name))


def fail(study: Study, trial: FrozenTrial, reason: str) -> bool:
    """Fail a running trial for a reason outside of it; return whether this call changed its state."""
    try:
        study._storage.set_trial_user_attr(trial._trial_id, Attr.FAIL_REASON, HANDED_BACK + reason)
        return study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False


def hand_back(study: Study, trial: FrozenTrial, reason: str) -> bool:
    """Fail a running trial whose worker is gone, and enqueue its parameters; nothing else of it is kept.

    Returns:
        Whether this call did it: if several workers notice, only one enqueues.
    """
    if not fail(study, trial, reason):
        return False
    trial = study._storage.get_trial(trial._trial_id)  # with what was stored since the look; a failed one takes no more
    fixed = {**trial.system_attrs.get(FIXED, {}), **trial.params}
    if fixed:
        attrs = trial.user_attrs
        named = {name: attrs[name] for name in (Attr.ANCHOR, Attr.RESUMES) if attrs.get(name) is not None}
        study.enqueue_trial(fixed, user_attrs={Attr.RETRY_OF: trial.number, **named})
    return True


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
    """

    def __init__(self, every: float = BEAT, missed: int = MISSED) -> None:
        self._every, self._missed = every, missed
        self._seen: dict[int, tuple[Any, int]] = {}
        self._next = 0.0

    def abandoned(self, trials: Sequence[FrozenTrial], now: float) -> list[tuple[FrozenTrial, str]]:
        """Return the abandoned ones among a study's trials as just read, each with the reason; `now` is monotonic."""
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        dead = [trial for trial in running if is_gone(trial.user_attrs.get(Attr.WORKER))]
        found = [(trial, f"{worker_name(trial.user_attrs[Attr.WORKER])} died") for trial in dead]
        if now < self._next:
            return found
        self._next = now + self._every
        self._seen = {trial._trial_id: self._look(trial) for trial in running}
        silent = [trial for trial in running if self._seen[trial._trial_id][1] >= self._missed and trial not in dead]
        seconds = f"{self._every * self._missed:g} s"
        return found + [(t, f"{worker_name(t.user_attrs.get(Attr.WORKER))} gave no sign for {seconds}") for t in silent]

    def _look(self, trial: FrozenTrial) -> tuple[Any, int]:
        sign = trial.user_attrs.get(Attr.WORKER), trial.user_attrs.get(Attr.BEAT), len(trial.user_attrs)
        before, missed = self._seen.get(trial._trial_id, (None, 0))
        return sign, missed + 1 if sign == before else 0
