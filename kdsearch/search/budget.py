"""When a study ends: finished trials, epochs of training over all trials, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

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


def finished_count(trials: Iterable[FrozenTrial]) -> int:
    """How many of a study's trials are finished."""
    return sum(map(is_finished, trials))


def epochs_spent(trials: Iterable[FrozenTrial]) -> int:
    """Epochs of training over all trials of a study: pruned, failed, killed and running ones too.

    Those that a trial took over from the checkpoint of a handed-back one count once, with that one.
    """
    return sum(max(0, epochs_run(trial) - int(trial.user_attrs.get(Attr.RESUMED, 0))) for trial in trials)


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
        return self._spent(lambda: study.get_trials(deepcopy=False))

    def over(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether no new trial may start in a study with these."""
        enough = self.trials is not None and finished_count(trials) >= self.trials
        return enough or self._spent(lambda: trials) is not None

    def _spent(self, trials: Callable[[], Sequence[FrozenTrial]]) -> str | None:
        """Reads trials only where epochs are limited: a running trial asks after every epoch."""
        if self._end is not None and time.monotonic() >= self._end:
            return TIME_OVER
        return EPOCHS_SPENT if self.epochs is not None and epochs_spent(trials()) >= self.epochs else None

    def cut(self, trial: Trial) -> str | None:
        """Why a running trial has to end after this epoch, or None; an anchor is measured to its end."""
        return None if trial.user_attrs.get(Attr.ANCHOR) else self.spent(trial.study)

    def progress(self, study: Study) -> tuple[int, int | None, str]:
        """How far a study is, of how much, in "trials" or "epochs"; None where only time ends it."""
        trials = study.get_trials(deepcopy=False)
        if self.trials is None and self.epochs is not None:
            return epochs_spent(trials), self.epochs, "epochs"
        return finished_count(trials), self.trials, "trials"
