"""When a study ends: finished trials, epochs of training over all trials, seconds."""

from __future__ import annotations

import time

from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from kdsearch.errors import KdsearchError
from kdsearch.records import Attr

DEFAULT_TRIALS = 50  # where nothing else ends a study
EPOCHS_SPENT = "the epochs budget was spent"
TIME_OVER = "the timeout had passed"


def epochs_run(trial: FrozenTrial) -> int:
    """Epochs a trial trained for, whatever became of it."""
    return max(map(int, trial.user_attrs.get(Attr.CURVE, {})), default=0)


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial counts: COMPLETE or PRUNED, and trained for at least one epoch."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and epochs_run(trial) >= 1


def finished_count(study: Study) -> int:
    """How many finished trials a study holds."""
    return sum(map(is_finished, study.get_trials(deepcopy=False)))


def epochs_spent(study: Study) -> int:
    """Epochs of training over all trials of a study: pruned, failed, killed and running ones too."""
    return sum(map(epochs_run, study.get_trials(deepcopy=False)))


class Budget:
    """What a study may spend.

    Args:
        trials: finished trials the study ends with; None: 50, or no limit where another one is given.
        epochs: of training over all trials of the study, anchors, pruned, failed and killed ones included.
        seconds: of this run, from `start` on.

    Attributes:
        trials, epochs, seconds: the limits; None where there is none.

    Raises:
        KdsearchError: a limit is below 1 (seconds: below 0).
    """

    def __init__(self, *, trials: int | None = None, epochs: int | None = None, seconds: float | None = None) -> None:
        for option, value in {"--trials": trials, "--epochs-budget": epochs}.items():
            if value is not None and value < 1:
                raise KdsearchError(f"{option} must be at least 1", got=value, remedy="give a whole number above 0")
        if seconds is not None and not seconds >= 0:
            raise KdsearchError("--timeout must be at least 0", got=seconds, remedy="give seconds")
        self.trials = DEFAULT_TRIALS if trials is None and epochs is None and seconds is None else trials
        self.epochs = epochs
        self.seconds = seconds
        self._end: float | None = None

    def start(self) -> None:
        """Lets the seconds run."""
        self._end = None if self.seconds is None else time.monotonic() + self.seconds

    def spent(self, study: Study) -> str | None:
        """Why no epoch may be trained any more, or None."""
        if self._end is not None and time.monotonic() >= self._end:
            return TIME_OVER
        return EPOCHS_SPENT if self.epochs is not None and epochs_spent(study) >= self.epochs else None

    def over(self, study: Study) -> bool:
        """Whether no new trial may start."""
        enough = self.trials is not None and finished_count(study) >= self.trials
        return enough or self.spent(study) is not None

    def cut(self, trial: Trial) -> str | None:
        """Why a running trial has to end after this epoch, or None; an anchor is measured to its end."""
        return None if trial.user_attrs.get(Attr.ANCHOR) else self.spent(trial.study)

    def progress(self, study: Study) -> tuple[int, int | None, str]:
        """How far a study is, of how much, in "trials" or "epochs"; None where only time ends it."""
        if self.trials is None and self.epochs is not None:
            return epochs_spent(study), self.epochs, "epochs"
        return finished_count(study), self.trials, "trials"
