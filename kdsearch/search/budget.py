"""What a study may spend (finished trials, epochs of training over all trials, seconds), and where its time went."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from optuna import Study, Trial
from optuna.samplers import BaseSampler
from optuna.trial import BaseTrial, FrozenTrial, TrialState

from kdsearch.errors import KdsearchError
from kdsearch.records import Attr, StudyAttr
from kdsearch.search.sampling.samplers import WrappedSampler

DEFAULT_TRIALS = 50  # if no other limit is given

Work = Literal["training", "asking the teacher", "scoring", "timing", "search", "storage and the rest"]
WORK: tuple[Work, ...] = get_args(Work)
REST: Work = "storage and the rest"


def epochs_run(trial: BaseTrial) -> int:
    """Return the number of epochs of a trial's curve, whatever its state."""
    return max(map(int, trial.user_attrs.get(Attr.CURVE, {})), default=0)


def is_finished(trial: FrozenTrial) -> bool:
    """Return whether a trial counts as finished: COMPLETE or PRUNED, with at least one epoch of training."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and epochs_run(trial) >= 1


def finished_count(trials: Iterable[FrozenTrial]) -> int:
    return sum(map(is_finished, trials))


def epochs_spent(trials: Iterable[FrozenTrial]) -> int:
    """Return the epochs of training over all trials of a study, also pruned, failed, killed and running ones.

    Epochs that a trial took over from the checkpoint of another one count once, for the other one.
    """
    return sum(max(0, epochs_run(trial) - int(trial.user_attrs.get(Attr.RESUMED, 0))) for trial in trials)


class Budget:
    """The limits of a study; None where there is none.

    Args:
        trials: number of finished trials that ends the study; None: 50, or no limit if another one is given.
        epochs: of training over all trials of the study, also anchors, pruned, failed and killed ones.
        seconds: of this run, from `start` on.

    Raises:
        KdsearchError: a limit is below 1 (seconds: below 0 or not finite).
    """

    def __init__(self, *, trials: int | None = None, epochs: int | None = None, seconds: float | None = None) -> None:
        for option, value in {"--trials": trials, "--epochs-budget": epochs}.items():
            if value is not None and value < 1:
                raise KdsearchError(f"{option} must be at least 1", got=value, remedy="give a whole number above 0")
        if seconds is not None and not 0 <= seconds < math.inf:
            rule = "--timeout must be finite" if seconds == math.inf else "--timeout must be at least 0"
            raise KdsearchError(rule, got=seconds, remedy="give seconds, or leave it out")
        self.trials = DEFAULT_TRIALS if trials is None and epochs is None and seconds is None else trials
        self.epochs = epochs
        self.seconds = seconds
        self._end: float | None = None

    def start(self) -> None:
        self._end = None if self.seconds is None else time.monotonic() + self.seconds

    def spent(self, study: Study) -> str | None:
        """Return the limit that forbids further epochs, in words, or None."""
        return self._spent(lambda: study.get_trials(deepcopy=False))

    def over(self, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether no new trial may start in a study with these trials."""
        enough = self.trials is not None and finished_count(trials) >= self.trials
        return enough or self._spent(lambda: trials) is not None

    def _spent(self, trials: Callable[[], Sequence[FrozenTrial]]) -> str | None:
        """Read the trials only if epochs are limited, because a running trial asks after every epoch."""
        if self._end is not None and time.monotonic() >= self._end:
            return "the timeout had passed"
        exhausted = self.epochs is not None and epochs_spent(trials()) >= self.epochs
        return "the epochs budget was spent" if exhausted else None

    def cut(self, trial: Trial) -> str | None:
        """Return why a running trial has to end after this epoch, or None; anchors are always trained to their end."""
        return None if trial.user_attrs.get(Attr.ANCHOR) else self.spent(trial.study)

    def progress(self, study: Study) -> tuple[int, int | None, str]:
        """Return how much is done, the total (None if only time ends the study), and the unit: "trials" or "epochs"."""
        trials = study.get_trials(deepcopy=False)
        if self.trials is None and self.epochs is not None:
            return epochs_spent(trials), self.epochs, "epochs"
        return finished_count(trials), self.trials, "trials"


class Clock:
    """Counts wall-clock seconds by kind of work, each second once, for the innermost kind."""

    def __init__(self) -> None:
        self.seconds: dict[Work, float] = dict.fromkeys(WORK, 0.0)
        self._now: Work | None = None
        self._since = 0.0

    @contextmanager
    def spent_on(self, work: Work) -> Iterator[None]:
        """Count the body's seconds as this kind of work, except those of nested kinds."""
        outer = self._switch(work)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, work: Work | None) -> Work | None:
        now, before = time.perf_counter(), self._now
        if before is not None:
            self.seconds[before] += now - self._since
        self._now, self._since = work, now
        return before

    def move(self, seconds: float, source: Work, target: Work) -> None:
        """Reassign seconds from one kind of work to another."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds


def shares(seconds: Mapping[Any, float]) -> str:
    """Return the shares of the time in words, largest first: "training 94 %, timing 3 %"; empty for no time."""
    total = sum(seconds.values())
    if total <= 0:
        return ""
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{work} {100 * spent / total:.0f} %" for work, spent in ordered if spent > 0)


def seconds_spent(study: Study) -> dict[str, float]:
    """Return a study's seconds by kind of work, over all runs and workers that have ended."""
    kept = [value for name, value in study.user_attrs.items() if name.split(" ")[0] == StudyAttr.SPENT]
    return {work: sum(each.get(work, 0.0) for each in kept) for work in WORK}


class TimedSampler(WrappedSampler):
    """Counts an inner sampler's seconds as search."""

    def __init__(self, inner: BaseSampler, clock: Clock) -> None:
        super().__init__(inner)
        names = ("before_trial", "infer_relative_search_space", "sample_relative", "sample_independent", "after_trial")
        for name in names:
            setattr(self, name, clock.spent_on("search")(getattr(inner, name)))
