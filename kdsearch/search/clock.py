"""Accounting of a run's time: training, asking the teacher, scoring, timing, search, and the rest, mostly storage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from kdsearch.records import StudyAttr
from kdsearch.search.sampling.samplers import WrappedSampler

Work = Literal["training", "asking the teacher", "scoring", "timing", "search", "storage and the rest"]
WORK: tuple[Work, ...] = get_args(Work)
REST: Work = "storage and the rest"


class Clock:
    """Counts wall-clock seconds by kind of work, each second once, for the innermost kind.

    Attributes:
        seconds: by kind of work so far.
    """

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


def keep(study: Study, run: str, seconds: Mapping[Any, float]) -> None:
    """Store a run's seconds by kind of work with its study, under a unique name, as several runs may be active."""
    study.set_user_attr(f"{StudyAttr.SPENT} {run}", dict(seconds))


def spent(study: Study) -> dict[str, float]:
    """Return a study's seconds by kind of work, over all runs and workers that have ended."""
    kept = [value for name, value in study.user_attrs.items() if name.split(" ")[0] == StudyAttr.SPENT]
    return {work: sum(each.get(work, 0.0) for each in kept) for work in WORK}


class TimedSampler(WrappedSampler):
    """Counts an inner sampler's seconds as search.

    Args:
        inner: the sampler that does the work.
        clock: counts the seconds.
    """

    def __init__(self, inner: BaseSampler, clock: Clock) -> None:
        super().__init__(inner)
        self._clock = clock

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        with self._clock.spent_on("search"):
            super().before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        with self._clock.spent_on("search"):
            return super().infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with self._clock.spent_on("search"):
            return super().sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        with self._clock.spent_on("search"):
            return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        with self._clock.spent_on("search"):
            super().after_trial(study, trial, state, values)
