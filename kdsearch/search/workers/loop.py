"""The trial loop of one process: claim, run, report, and hand back on interruption."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from optuna import Study, Trial, TrialPruned
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from kdsearch.errors import RunError
from kdsearch.records import HANDED_BACK, INTERRUPTED, Attr, Progress, was_handed_back
from kdsearch.search import failures, space
from kdsearch.search.budget import Budget, epochs_run, is_finished
from kdsearch.search.failures import BrokenDeviceError, Streak
from kdsearch.search.plan import Plan
from kdsearch.search.trial import Objective
from kdsearch.search.workers import slots
from kdsearch.system import signals

LOOK = 1.0  # seconds between two looks at a study without free trials


def run(
    study: Study,
    objective: Objective,
    plan: Plan,
    *,
    budget: Budget,
    progress: Progress,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Run trials until the budget allows no new one; on an interruption hand the running one back to the study.

    `between` is called between trials, and while there is none to run.

    Raises:
        RunError: too many trials in a row failed (see `failures.Streak`).
        BrokenDeviceError: the GPU works no more; the trial is handed back.
        KeyboardInterrupt: as it came.
    """
    streak = Streak()
    watch = slots.Watch()
    budget.start()
    progress.study_started(*budget.progress(study))
    try:
        while not budget.over(trials := study.get_trials(deepcopy=False)):
            changed = hand_back_abandoned(study, trials, watch, progress)
            changed |= space.enqueue_missing(study, plan.spec, at_most=budget.trials, trials=trials)
            claimed = slots.claim(study, budget.trials, None if changed else trials)
            if claimed is None:
                between()
                signals.pause(LOOK * random.uniform(0.5, 1))  # jitter, so that waiting workers do not all look at once
                continue
            trial = run_one(study, objective, claimed)
            progress.trial_finished(trial.number, trial.state.name, describe(trial), counted=is_finished(trial))
            if not was_handed_back(trial.user_attrs) and streak.ends(study, trial):
                reason = trial.user_attrs.get(Attr.FAIL_REASON)
                raise RunError(
                    f"{streak.count} trials in a row failed, the last one with: {reason}",
                    remedy="fix the cause and run the same command again: finished trials are kept",
                )
            between()
    except KeyboardInterrupt:
        hand_back_own(study)
        raise
    except BrokenDeviceError as error:
        hand_back_own(study, str(error), twice=False)
        raise


def run_one(study: Study, objective: Objective, trial_id: int) -> FrozenTrial:
    """Run a claimed trial and report its outcome; if another process has handed it back meanwhile, that stands.

    Raises:
        BrokenDeviceError: this process can run nothing any more; the trial still runs, as far as the storage knows.
    """
    study._thread_local.cached_all_trials = None  # as `Study.ask` does
    trial = Trial(study, trial_id)
    values, state = None, TrialState.FAIL
    with slots.beating(study, trial_id):
        try:
            values, state = objective(trial), TrialState.COMPLETE
        except TrialPruned:
            state = TrialState.PRUNED
        except BrokenDeviceError:
            raise
        except Exception:  # the objective has stored why
            pass
        with signals.shield(), suppress(UpdateFinishedTrialError):
            study.tell(trial, values, state, skip_if_finished=True)
    return study._storage.get_trial(trial_id)


def hand_back_abandoned(study: Study, trials: Sequence[FrozenTrial], watch: slots.Watch, progress: Progress) -> bool:
    """Hand back the trials of workers that are gone and warn of it; return whether there were any."""
    abandoned = watch.abandoned(trials, time.monotonic())
    for trial, reason in abandoned:
        if slots.hand_back(study, trial, reason):
            progress.warning(f"trial {trial.number} is run again: {reason}")
    return bool(abandoned)


def hand_back_own(study: Study, reason: str = INTERRUPTED.removeprefix(HANDED_BACK), *, twice: bool = True) -> None:
    """Hand back what this process was running.

    Args:
        study: of the trial.
        reason: why it is not run on.
        twice: whether a trial that was handed back before for the same kind of reason is so again; else it fails: one
            that breaks the GPU wherever it runs would take all workers with it.
    """
    trials = study.get_trials(deepcopy=False)
    me = slots.myself()
    for trial in trials:
        if trial.state != TrialState.RUNNING or trial.user_attrs.get(Attr.WORKER) != me:
            continue
        before = trial.user_attrs.get(Attr.RETRY_OF)
        known = next((other.user_attrs.get(Attr.FAIL_REASON) for other in trials if other.number == before), None)
        if not twice and failures.BROKEN in str(known):
            with suppress(UpdateFinishedTrialError):
                study._storage.set_trial_user_attr(trial._trial_id, Attr.FAIL_REASON, reason)
                study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        else:
            slots.hand_back(study, trial, reason)


def describe(trial: FrozenTrial) -> str:
    found = trial.user_attrs
    if trial.state == TrialState.FAIL:
        return str(found.get(Attr.FAIL_REASON, "no reason stored"))
    ran = epochs_run(trial)
    if ran == 0:
        return f"not trained: {found.get(Attr.PRUNED_BY, {}).get('reason', 'refused by the pruner')}"
    return (
        f"accuracy {found[Attr.ACCURACY]:.2%} (test {found[Attr.TEST_ACCURACY]:.2%}) at epoch {found[Attr.BEST_EPOCH]}"
        f" of {ran}/{found[Attr.CONFIG]['epochs']}, ratio {found[Attr.RATIO]:.4g}"
    )
