"""Resuming trials that the pruner ended: which of them is worth further steps by what has been learnt since."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from optuna import Trial
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from kdsearch import pareto
from kdsearch.pruning import forecast
from kdsearch.pruning.history import History
from kdsearch.pruning.scale import Scale
from kdsearch.records import Attr, Config

NEIGHBOURS = 10  # of a forecast, as many as the pruner's
MARGIN = 2.0  # times the gain per step that others promise: what a trial must promise to be resumed
MOST = 16  # trials whose checkpoints are kept, the most promising ones


class Paused(Protocol):
    """The trials that the pruner ended and whose trainings can go on in this process."""

    def offered(self) -> Sequence[int]:
        """Return their numbers."""
        ...

    def take(self, number: int) -> bool:
        """Claim a trial for this process; return whether no other one has."""
        ...

    def drop(self, number: int) -> None:
        """Give up a trial that is not worth its checkpoint."""
        ...


class Continued:
    """Stands in for a candidate: the parameters of an ended trial."""

    def __init__(self, trial: FrozenTrial) -> None:
        self.parameters: dict[str, Any] = dict(trial.params)
        self.distributions: dict[str, BaseDistribution] = dict(trial.distributions)


def resumed(trial: Trial) -> int | None:
    """Return the number of the ended trial that a new trial is to go on with, as its sampler chose; else None.

    An `optuna.Trial` does not see what its sampler stored: from here on it does.

    Args:
        trial: with parameters, for a sampler chooses when the first one is suggested.
    """
    number = trial.study._storage.get_trial(trial._trial_id).user_attrs.get(Attr.RESUMES)
    if number is not None:
        trial.set_user_attr(Attr.RESUMES, number)
    return number


def promises(
    history: History,
    scale: Scale,
    trials: Sequence[FrozenTrial],
    numbers: Sequence[int],
    steps: Callable[[Config], int],
) -> dict[int, float]:
    """Return the expected gain in hypervolume per further step of ended trials, by number, the highest first.

    It is the pruner's forecast without its optimism, from all curves seen by now: freeze-thaw in spirit (Swersky,
    Snoek, Adams, arXiv 1406.3896), with nearest neighbours in place of its Gaussian process. Trials that are at their
    end, that have been resumed, or that nothing can be forecast for are left out.

    Args:
        history: updated.
        scale: of the objectives.
        trials: of the study.
        numbers: of the ended trials.
        steps: of a configuration's training.
    """
    found: dict[int, float] = {}
    for number in sorted(set(numbers) & set(history.ended.number.tolist())):
        view = history.about(number)
        last = steps(trials[number].user_attrs[Attr.CONFIG])
        hope = forecast.forecast(view, scale, last_step=last, neighbours=NEIGHBOURS)
        if hope is None:
            continue
        others = view.curves()
        points = scale.transform(np.vstack([others.points[others.feasible], forecast.own_point(view)]))
        found[number] = forecast.promise(view, scale, hope, points[pareto.members(points)])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def choose(paused: Paused, promised: Mapping[int, float], bar: float) -> int | None:
    """Claim the most promising trial above a bar, and drop those that are not worth their checkpoints.

    Args:
        paused: the trials.
        promised: see `promises`.
        bar: gain per step that others promise.
    """
    for number in list(promised)[MOST:]:
        paused.drop(number)
    for number, gain in promised.items():
        if gain <= bar:
            return None
        if paused.take(number):
            return number
    return None
