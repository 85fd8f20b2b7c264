"""A trial's student trained again, exactly as in its study."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial
from torch import nn

from kdsearch import files
from kdsearch.distil import teacher
from kdsearch.errors import DefinitionError, StorageError
from kdsearch.progress import Progress
from kdsearch.records import Attr, StudyAttr
from kdsearch.search.objective import Best, Workshop
from kdsearch.search.plan import rejoin
from kdsearch.storage import load_trial


@dataclass(frozen=True)
class Retrained:
    """A student trained again.

    Attributes:
        network: with the weights of its best validated checkpoint.
        epoch: of that checkpoint.
        accuracy, test_accuracy: its validation and test accuracy, fractions.
        config: its configuration.
    """

    network: nn.Module
    epoch: int
    accuracy: float
    test_accuracy: float
    config: dict[str, Any]


def find_trial(study: Study, number: int) -> FrozenTrial:
    """The trial of that number, if it has a configuration to train.

    Raises:
        StorageError: there is none, or it never began.
    """
    trial = load_trial(study, number)
    if Attr.CONFIG not in trial.user_attrs:
        raise StorageError("the trial must have begun", got=f"trial {number}, {trial.state.name}")
    return trial


def retrain(
    study: Study, number: int, *, data_dir: str | None = None, device: str = "auto", progress: Progress | None = None
) -> Retrained:
    """Trains a trial's student again: same data, teacher, configuration and seed, as many epochs as it ran.

    Args:
        study: made by kdsearch.
        number: of the trial.
        data_dir: where data sets lie.
        device: as of `optimize`.
        progress: told of epochs.

    Raises:
        KdsearchError: the study, the trial or the data set is not as it was.
    """
    progress = progress or Progress()
    trial = find_trial(study, number)
    plan = rejoin(study, url="", data_dir=data_dir, device=device)
    file, split = plan.spec, plan.split
    expected = study.user_attrs[StudyAttr.DEFINITION]["data"]["fingerprint"]
    if split.fingerprint != expected:
        raise DefinitionError(
            f"the data must be those of the study (fingerprint {expected})",
            got=split.fingerprint,
            remedy="name their folder with --data-dir",
        )
    workshop = Workshop(file, split, teacher.obtain(file.teacher, split, progress=progress), "flops")
    config, seed = trial.user_attrs[Attr.CONFIG], trial.user_attrs[Attr.SEED]
    student = workshop.build(config, seed)
    last = max(map(int, trial.user_attrs.get(Attr.CURVE, {})), default=0) or config["epochs"]
    best = Best()
    progress.study_started(0, 1)
    progress.trial_started(number, trial.user_attrs.get(Attr.ANCHOR), config)
    for record in workshop.teach(student, config, seed):
        best.see(record, student)
        progress.trial_epoch(number, record, config["epochs"])
        if record.epoch == last:
            break
    student.load_state_dict(best.weights)
    return Retrained(student, best.epoch, best.accuracy, workshop.test(student), config)


def save(student: Retrained, path: Path) -> None:
    """Saves a student's weights as safetensors, whole or not at all.

    Raises:
        KdsearchError: the file cannot be written.
    """
    files.save_tensors(path, student.network.state_dict(), {"config": json.dumps(student.config)})
