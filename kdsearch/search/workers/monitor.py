"""Progress of a study's workers, observed through the storage and reported as if they ran here."""

from __future__ import annotations

import math

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from kdsearch.records import Attr, EpochRecord, Progress
from kdsearch.search.budget import epochs_run, is_finished


def describe(trial: FrozenTrial) -> str:
    """Describe a trial's outcome in a few words."""
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


class Monitor:
    """Reports trials as they begin, train and end.

    Args:
        study: of trials that other processes run; those already in it are not reported.
        progress: receives the events.
    """

    def __init__(self, study: Study, progress: Progress) -> None:
        self._study, self._progress = study, progress
        self._over = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
        self._epochs: dict[int, int] = {}  # of the running trials
        self.finished = 0  # finished trials since the start of monitoring

    def look(self) -> list[FrozenTrial]:
        """Read the storage and report what is new; return all trials."""
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.number in self._over or trial.state == TrialState.WAITING or Attr.CONFIG not in trial.user_attrs:
                if trial.state == TrialState.FAIL and trial.number not in self._over:
                    self._end(trial)
                continue
            self._tell(trial)
            if trial.state.is_finished():
                self._end(trial)
        return trials

    def _tell(self, trial: FrozenTrial) -> None:
        config = trial.user_attrs[Attr.CONFIG]
        if trial.number not in self._epochs:
            self._epochs[trial.number] = 0
            self._progress.trial_started(trial.number, trial.user_attrs.get(Attr.ANCHOR), config)
        curve = trial.user_attrs.get(Attr.CURVE, {})
        known = max(self._epochs[trial.number], int(trial.user_attrs.get(Attr.RESUMED, 0)))
        for epoch in range(known + 1, epochs_run(trial) + 1):
            record = EpochRecord(epoch, math.nan, curve[str(epoch)][0], math.nan)
            self._progress.trial_epoch(trial.number, record, config["epochs"])
            self._epochs[trial.number] = epoch

    def _end(self, trial: FrozenTrial) -> None:
        self._over.add(trial.number)
        self._epochs.pop(trial.number, None)
        counted = is_finished(trial)
        self.finished += counted
        self._progress.trial_finished(trial.number, trial.state.name, describe(trial), counted=counted)
