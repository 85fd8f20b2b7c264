"""Paused trials: the checkpoints of trials that the pruner ended, so that a later trial can go on with one."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from kdsearch.distil import checkpoint
from kdsearch.distil.checkpoint import Checkpoint
from kdsearch.distil.train import State
from kdsearch.errors import KdsearchError
from kdsearch.records import Attr, was_handed_back
from kdsearch.search.sampling.resuming import MOST

NAME = re.compile(r"trial-(\d+)(-taken)?\.safetensors")
MOST_BYTES = 2**30  # of all checkpoints of a study
UNCLAIMED = 3600.0  # seconds after which a checkpoint that was taken, but that no trial goes on with, is offered again


class PausedTrials:
    """The ended trials of a study whose trainings can go on on this machine.

    Several processes may share the folder. A checkpoint is claimed by renaming its file, which one process wins.

    Args:
        place: folder of the checkpoints, beside the study's weights.
        warn: gets one line about a checkpoint that cannot be written or read; the study goes on.
    """

    def __init__(self, place: Path, warn: Callable[[str], object]) -> None:
        self._place, self._warn = place, warn

    def keep(self, number: int, state: State) -> None:
        """Keep the state of a trial that ends, in place of the oldest ones where they take too much space."""
        try:
            checkpoint.save(self._path(number), state, _name(number))
        except (KdsearchError, TypeError, RuntimeError) as error:  # RuntimeError: tensors that share memory
            self._warn(f"trial {number} cannot be resumed later, its checkpoint was not kept: {error}")
        self._limit()

    def offered(self) -> list[int]:
        """Return the numbers of the trials that can be resumed, ascending."""
        return sorted(number for number, taken, _ in self._files() if not taken)

    def take(self, number: int) -> bool:
        """Claim a trial for this process; return whether no other one has."""
        try:
            self._path(number).rename(self._path(number, taken=True))
        except OSError:
            return False
        return True

    def drop(self, number: int) -> None:
        """Give up a trial that is not worth its checkpoint."""
        with suppress(OSError):
            self._path(number).unlink()

    def checkpoint(self, number: int) -> Checkpoint:
        """Return the checkpoint of a claimed trial; if its file is missing, the training begins anew."""
        return Checkpoint(_name(number), self._warn, path=self._path(number, taken=True))

    def sweep(self, trials: Sequence[FrozenTrial]) -> None:
        """Remove the checkpoints of trials that were resumed, and offer those again that nothing came of.

        Args:
            trials: of the study, as just read.
        """
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
        return self._place / f"{_name(number)}{'-taken' if taken else ''}.safetensors"

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


def _name(number: int) -> str:
    return f"trial-{number}"
