"""Trials that the pruner ended: their checkpoints, and which of them is worth further epochs by what is known now."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from optuna import Trial
from optuna.trial import FrozenTrial, TrialState

from kdsearch import pareto
from kdsearch.distil import checkpoint
from kdsearch.distil.checkpoint import Checkpoint
from kdsearch.distil.train import State
from kdsearch.errors import KdsearchError
from kdsearch.pruning import forecast
from kdsearch.pruning.history import History
from kdsearch.pruning.scale import Scale
from kdsearch.records import Attr, Config, was_handed_back

NEIGHBOURS = 10  # of a forecast: the default of `ParetoPruner`
MARGIN = 2.0  # times the gain per step that others promise: what a trial must promise to be resumed
MOST = 16  # ended trials that are offered, the most promising ones; up to twice as many checkpoints are on disk
NAME = re.compile(r"trial-(\d+)(-taken)?\.safetensors")
MOST_BYTES = 2**30  # of all checkpoints of a study
UNCLAIMED = 3600.0  # seconds after which a checkpoint that was taken, but that no trial goes on with, is offered again


class Paused(Protocol):
    """The trials that the pruner ended and whose trainings can go on in this process."""

    def offered(self) -> Sequence[int]:
        """Return their numbers."""

    def take(self, number: int) -> bool:
        """Claim a trial for this process; return whether no other one has."""

    def drop(self, number: int) -> None:
        """Give up a trial that is not worth its checkpoint."""


class PausedTrials(Paused):
    """The ended trials of a study, their checkpoints in a folder of this machine.

    Several processes may share the folder. A checkpoint is claimed by renaming its file, which one process wins.
    `warn` gets one line about a checkpoint that cannot be written or read; the study goes on.
    """

    def __init__(self, place: Path, warn: Callable[[str], object]) -> None:
        self._place, self._warn = place, warn

    def keep(self, number: int, state: State) -> None:
        """Keep the state of a trial that ends, in place of the oldest ones where they take too much space."""
        try:
            checkpoint.save(self._path(number), state, f"trial-{number}")
        except (KdsearchError, TypeError, RuntimeError) as error:  # RuntimeError: tensors that share memory
            self._warn(f"trial {number} cannot be resumed later, its checkpoint was not kept: {error}")
        self._limit()

    def offered(self) -> list[int]:
        return sorted(number for number, taken, _ in self._files() if not taken)

    def take(self, number: int) -> bool:
        try:
            self._path(number).rename(self._path(number, taken=True))
        except OSError:
            return False
        return True

    def drop(self, number: int) -> None:
        with suppress(OSError):
            self._path(number).unlink()

    def checkpoint(self, number: int) -> Checkpoint:
        """Return the checkpoint of a claimed trial; if its file is missing, the training begins anew."""
        return Checkpoint(f"trial-{number}", self._warn, path=self._path(number, taken=True))

    def sweep(self, trials: Sequence[FrozenTrial]) -> None:
        """Remove the checkpoints of trials that were resumed, and offer those again that nothing came of."""
        for number, taken, path in self._files():
            if not taken:
                continue
            heirs = [trial for trial in trials if trial.user_attrs.get(Attr.RESUMES) == number]
            if any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in heirs):
                continue
            with suppress(OSError):  # another process may have done it
                if any(not was_handed_back(trial.user_attrs) for trial in heirs):
                    path.unlink()
                elif time.time() - path.stat().st_ctime > UNCLAIMED:
                    path.rename(self._path(number))

    def _path(self, number: int, *, taken: bool = False) -> Path:
        return self._place / f"trial-{number}{'-taken' if taken else ''}.safetensors"

    def _files(self) -> list[tuple[int, bool, Path]]:
        """Return (trial, whether it is taken, path) of each checkpoint."""
        with suppress(OSError):
            found = [(NAME.fullmatch(name), name) for name in os.listdir(self._place)]
            return [(int(match[1]), match[2] is not None, self._place / name) for match, name in found if match]
        return []

    def _limit(self) -> None:
        files: list[tuple[float, int, Path]] = []
        for _, taken, path in self._files():
            with suppress(OSError):
                if not taken:
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
        files.sort(reverse=True)
        total = 0
        for place, (_, size, path) in enumerate(files):
            total += size
            if place >= 2 * MOST or total > MOST_BYTES:  # the sampler keeps the most promising ones of these
                with suppress(OSError):
                    path.unlink()


def resumed(trial: Trial) -> int | None:
    """Return the number of the ended trial that a new trial is to go on with, as its sampler chose; else None.

    An `optuna.Trial` does not see what its sampler stored: from here on it does. The trial must have parameters, for a
    sampler chooses when the first one is suggested.
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
    """Claim the most promising trial above a bar (gain per step), and drop those not worth their checkpoints."""
    for number in list(promised)[MOST:]:
        paused.drop(number)
    for number, gain in promised.items():
        if gain <= bar:
            return None
        if paused.take(number):
            return number
    return None
