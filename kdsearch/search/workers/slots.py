"""Exactly N trials, however many workers: a trial is run by whoever claims it, and only N may be claimed.

A trial in the storage is a slot. *Live* are those that wait, run, or finished and count; a trial that failed or was
refused before its first epoch is not, and never becomes so again. In the order of their numbers, only the first N live
slots may be run. A worker reads all trials, picks a waiting one among these, and claims it by the storage's
compare-and-set from WAITING to RUNNING, which one worker alone wins. Where fewer than N slots are live it adds one.

Why no more than N finish: suppose N + 1 did, and let t be the one with the highest number. The other N have lower
numbers, so they were there when t was claimed (a storage counts numbers up), and whoever finishes in the end was live
all the time. So the worker that claimed t saw N live slots before it, and was not allowed to. Why no fewer: while
fewer than N have finished, a slot among the first N runs, or waits to be claimed, or is missing and added.

Workers that add a slot at the same moment leave a few more than N: these wait on, and nobody runs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdsearch.records import HANDED_BACK, Attr
from kdsearch.search.budget import is_finished
from kdsearch.search.workers import liveness
from kdsearch.system import signals

FIXED = "fixed_params"  # Optuna's system attribute of an enqueued trial


def is_live(trial: FrozenTrial) -> bool:
    """Whether a trial takes one of the N slots."""
    return trial.state in (TrialState.WAITING, TrialState.RUNNING) or is_finished(trial)


def has_work(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether a waiting trial has parameters of its own to run: an anchor that is no other's copy, or a retry.

    Supervisors that start at once may both enqueue the anchors: the one of the lowest number is it, a copy a free slot.
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
    """Claims a trial for this process to run.

    Args:
        study: whose slots these are.
        wanted: N; None: no limit.
        trials: of the study, as read a moment ago: older news make no claim unsafe, for what was live stays so or
            counts no more. None: they are read here.

    Returns:
        The trial's id in the storage; None where all N slots are taken or finished: one may yet fail and be free again.
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
            study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={Attr.WORKER: liveness.myself()}))
        trials = None


def _take(study: Study, slot: FrozenTrial) -> bool:
    """The compare-and-set, and who won it.

    The name is there before as well: of a worker that is killed just after, others can then tell at once.
    """
    name, me = Attr.WORKER, liveness.myself()
    try:
        if name not in slot.user_attrs:
            study._storage.set_trial_user_attr(slot._trial_id, name, me)
        won = study._storage.set_trial_state_values(slot._trial_id, TrialState.RUNNING)
        if won and slot.user_attrs.get(name) != me:  # another one may have put its own there since the look
            study._storage.set_trial_user_attr(slot._trial_id, name, me)
    except UpdateFinishedTrialError:
        return False
    return won


def _prepare(study: Study, slot: FrozenTrial, trials: Sequence[FrozenTrial]) -> None:
    """Gives a claimed slot without work that of a trial which waits behind the first N, where there is one."""
    if has_work(slot, trials):
        return
    behind = [trial for trial in trials if trial.state == TrialState.WAITING and trial.number != slot.number]
    for trial in behind:
        if has_work(trial, trials) and _take(study, trial):
            _copy_work(study, slot, trial)
            fail(study, trial, f"its work was moved to trial {slot.number}")
            return
    if slot.system_attrs.get(FIXED):  # the copy of an anchor
        _copy_work(study, slot, None)


def _copy_work(study: Study, slot: FrozenTrial, source: FrozenTrial | None) -> None:
    attrs: dict[str, Any] = {} if source is None else source.user_attrs
    fixed = {} if source is None else source.system_attrs[FIXED]
    study._storage.set_trial_system_attr(slot._trial_id, FIXED, fixed)
    for name in (Attr.ANCHOR, Attr.RETRY_OF):
        if name in attrs or name in slot.user_attrs:
            study._storage.set_trial_user_attr(slot._trial_id, name, attrs.get(name))


def fail(study: Study, trial: FrozenTrial, reason: str) -> bool:
    """Fails a running trial through no fault of its own; whether this call did it, and no other."""
    try:
        study._storage.set_trial_user_attr(trial._trial_id, Attr.FAIL_REASON, HANDED_BACK + reason)
        return study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False


def hand_back(study: Study, trial: FrozenTrial, reason: str) -> bool:
    """Fails a running trial whose worker is gone, and enqueues its parameters: nothing else of it is kept.

    Args:
        study: of the trial.
        trial: as just read.
        reason: why it is not run on.

    Returns:
        Whether this call did it: of several workers that notice, one alone enqueues.
    """
    if not fail(study, trial, reason):
        return False
    fixed = {**trial.system_attrs.get(FIXED, {}), **trial.params}
    if fixed:
        anchor = trial.user_attrs.get(Attr.ANCHOR)
        named = {} if anchor is None else {Attr.ANCHOR: anchor}
        study.enqueue_trial(fixed, user_attrs={Attr.RETRY_OF: trial.number, **named})
    return True
