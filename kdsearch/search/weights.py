"""Weights of the front's trials and of confirmed ones, kept beside the storage, so that an export needs no training."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import platformdirs
import torch
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from kdsearch import pareto, sittings
from kdsearch.errors import KdsearchError
from kdsearch.records import Attr, Config, Progress
from kdsearch.storage import file_of, masked
from kdsearch.system import files

FOLDER = "KDSEARCH_WEIGHTS_DIR"
NOISE = 1.25  # factor between a first sitting's ratio and the mean of all
Reference = dict[str, str]
"""Names weights: `file` in the study's folder, and the `digest` of its tensors."""
NAME = re.compile(r"trial-(\d+)-[0-9a-f]{32}\.safetensors")


def folder(url: str, study: str) -> Path:
    """Return the folder of a study's weights on this machine.

    For a sqlite or journal file this is `FILE-weights/STUDY` beside it. For a server it is in the user's data folder
    (or `KDSEARCH_WEIGHTS_DIR`), and each machine has the weights of the trials that it ran.
    """
    name = files.hashed(study, allowed="A-Za-z0-9_.-", longest=40)
    path = file_of(url)
    if path is not None:
        return path.with_name(f"{path.name}-weights") / name
    base = Path(os.environ.get(FOLDER) or Path(platformdirs.user_data_dir("kdsearch")) / "weights")
    return base.expanduser() / files.short_hash(masked(url)) / name


def keep(place: Path, name: str, weights: Mapping[str, Tensor], config: Config) -> Reference:
    """Write a student's weights to `NAME-DIGEST.safetensors` in a folder; return a reference for `load`.

    Raises:
        KdsearchError: the file cannot be written.
    """
    plain = {key: value.detach().contiguous().cpu() for key, value in weights.items()}
    digest = files.digest(plain)
    path = place / f"{name}-{digest}.safetensors"
    files.save_tensors(path, plain, {"config": json.dumps(config)})
    return {"file": path.name, "digest": digest}


class Keeper:
    """Keeps the weights of trials on or near the front and removes those of trials that are far from it.

    A trial is near if it is on the front of the ratios over all sittings, which reports show, or would be with a ratio
    `NOISE` times its own: later sittings may bring it there.

    Several processes may do so at once. A file is named after its trial and the digest of its tensors, and written
    completely before the trial refers to it, so a killed process leaves at most a file that the next `sweep` removes.
    If the folder cannot be written there is a warning, and the trial goes on.
    """

    def __init__(self, place: Path, progress: Progress) -> None:
        self._place, self._progress = place, progress

    def keep(self, trial: Trial, weights: dict[str, Tensor], values: tuple[float, float]) -> None:
        """Keep the weights of a trial that is about to end with these values, unless complete trials put it far off."""
        others = trial.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if _is_beaten(values, [other.values for other in others]):
            return
        try:
            said = keep(self._place, f"trial-{trial.number}", weights, trial.user_attrs[Attr.CONFIG])
        except KdsearchError as error:
            self._progress.warning(f"the weights of trial {trial.number} were not kept: {error}")
            return
        trial.set_user_attr(Attr.WEIGHTS, said)

    def sweep(self, study: Study) -> None:
        """Remove the files of trials that are far from the front, or never ended properly."""
        if not self._place.is_dir():
            return
        found = {path: int(match[1]) for path in self._place.iterdir() if (match := NAME.fullmatch(path.name))}
        trials = study.get_trials(deepcopy=False)  # read after the files, so that each file's trial is among these
        complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        points = [trial.values for trial in complete]
        near = {trial.number for trial in complete if not _is_beaten(trial.values, points)}
        timed = sittings.ratios(sittings.by_architecture(complete, study.user_attrs))
        near |= {trial.number for trial in sittings.front(complete, timed)}
        for path, number in found.items():
            if number < len(trials) and trials[number].state == TrialState.RUNNING:
                continue  # its trial may not refer to its file yet
            if number not in near or named(trials[number]).get("file") != path.name:
                with suppress(OSError):  # a file that cannot be removed stays and does no harm
                    path.unlink()


def _is_beaten(values: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
    """Return whether another trial dominates one of these values even if its ratio were `NOISE` times as large."""
    best = (values[0], NOISE * values[1])
    return any(pareto.dominates(other, best) for other in others)


def named(trial: FrozenTrial) -> Reference:
    """Return a trial's reference to its weights; empty if they were never kept."""
    return reference(trial.user_attrs.get(Attr.WEIGHTS))


def reference(stored: object) -> Reference:
    """Return a stored reference to weights; empty if there is none."""
    return {str(key): str(value) for key, value in stored.items()} if isinstance(stored, dict) else {}


def load(url: str, study: str, said: Reference) -> dict[str, Tensor]:
    """Load kept weights, on the CPU.

    Raises:
        KdsearchError: they are not on this machine, or not those that the reference names.
    """
    path = folder(url, study) / Path(said.get("file", "none")).name
    try:
        if "file" not in said:
            raise ValueError("none were kept")
        tensors, _ = files.load_tensors(path, torch.device("cpu"))
        if files.digest(tensors) != said.get("digest"):
            raise ValueError("they are not the trial's: another digest")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise KdsearchError(f"the kept weights must be there and whole: {reason}", got=path) from None
    return tensors
