"""Weights of the trials on the front, kept beside the storage, so that exporting one needs no training."""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs
import torch
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from kdsearch import pareto
from kdsearch.errors import KdsearchError
from kdsearch.records import Attr, Progress
from kdsearch.storage import file_of, masked
from kdsearch.system import files

FOLDER = "KDSEARCH_WEIGHTS_DIR"
NAME = re.compile(r"trial-(\d+)-[0-9a-f]{32}\.safetensors")


def folder(url: str, study: str) -> Path:
    """Return the folder of a study's weights on this machine.

    For a sqlite or journal file this is `FILE-weights/STUDY` beside it. For a server it is in the user's data folder
    (or `KDSEARCH_WEIGHTS_DIR`), and each machine has the weights of the trials that it ran.
    """
    name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', study)[:40]}-{_hash(study)}"
    path = file_of(url)
    if path is not None:
        return path.with_name(f"{path.name}-weights") / name
    base = Path(os.environ.get(FOLDER) or Path(platformdirs.user_data_dir("kdsearch")) / "weights")
    return base.expanduser() / _hash(masked(url)) / name


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=4).hexdigest()


class Keeper:
    """Keeps the weights of trials on the front and removes those of trials that left it, which never return.

    Several processes may do so at once. A file is named after its trial and the digest of its tensors, and written
    completely before the trial refers to it, so a killed process leaves at most a file that the next `sweep` removes.
    If the folder cannot be written there is a warning, and the trial goes on.
    """

    def __init__(self, place: Path, progress: Progress) -> None:
        self._place, self._progress = place, progress

    def keep(self, trial: Trial, weights: dict[str, Tensor], values: tuple[float, float]) -> None:
        """Keep the weights of a trial that is about to end with these values, unless a complete trial dominates it."""
        others = trial.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if any(pareto.dominates(other.values, values) for other in others):
            return
        plain = {key: value.detach().contiguous().cpu() for key, value in weights.items()}
        digest = files.digest(plain)
        path = self._place / f"trial-{trial.number}-{digest}.safetensors"
        try:
            files.save_tensors(path, plain, {"config": json.dumps(trial.user_attrs[Attr.CONFIG])})
        except KdsearchError as error:
            self._progress.warning(f"the weights of trial {trial.number} were not kept: {error}")
            return
        trial.set_user_attr(Attr.WEIGHTS, {"file": path.name, "digest": digest})

    def sweep(self, study: Study) -> None:
        """Remove the files of trials that are no longer on the front, or never ended properly."""
        if not self._place.is_dir():
            return
        found = {path: int(match[1]) for path in self._place.iterdir() if (match := NAME.fullmatch(path.name))}
        trials = study.get_trials(deepcopy=False)  # read after the files, so that each file's trial is among these
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        front = {complete[i].number for i in pareto.front([trial.values for trial in complete])}
        for path, number in found.items():
            if number < len(trials) and trials[number].state == TrialState.RUNNING:
                continue  # its trial may not refer to its file yet
            if number not in front or named(trials[number]).get("file") != path.name:
                with suppress(OSError):  # a file that cannot be removed stays and does no harm
                    path.unlink()


def named(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's reference to its weights, `file` and `digest`; empty if they were never kept."""
    found = trial.user_attrs.get(Attr.WEIGHTS)
    return dict(found) if isinstance(found, dict) else {}


def load(url: str, study: str, trial: FrozenTrial) -> dict[str, Tensor]:
    """Load the kept weights of a trial, on the CPU.

    Raises:
        KdsearchError: they are not on this machine, or not those that the trial names.
    """
    said = named(trial)
    path = folder(url, study) / Path(str(said.get("file", f"trial-{trial.number}"))).name
    try:
        if not said:
            raise ValueError("the trial names none")
        tensors, _ = files.load_tensors(path, torch.device("cpu"))
        if files.digest(tensors) != said["digest"]:
            raise ValueError("they are not the trial's: another digest")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise KdsearchError(f"the kept weights must be there and whole: {reason}", got=path) from None
    return tensors
