"""Retraining of a trial's student, exactly as in its study or on the whole training set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from kdsearch.distil import teacher
from kdsearch.errors import DefinitionError, StorageError
from kdsearch.records import Attr, Config, EpochRecord, Progress, StudyAttr
from kdsearch.search.budget import epochs_run
from kdsearch.search.plan import Plan, check_own, rejoin
from kdsearch.search.trial import Best
from kdsearch.search.workshop import Workshop
from kdsearch.storage import load_trial
from kdsearch.system import files

STATUS = "`kdsearch status` lists the front"


@dataclass(frozen=True)
class Retrained:
    """A retrained student, with the weights of its best validated epoch or, trained on the whole set, of its last."""

    network: nn.Module
    epoch: int  # of these weights
    accuracy: float | None  # of validation, a fraction; None if the validation images were trained on
    test_accuracy: float
    config: Config


def find_trial(study: Study, number: int) -> FrozenTrial:
    """Return the trial of that number, if it has a configuration to train.

    Raises:
        DefinitionError: the study was not made by kdsearch.
        StorageError: there is no such trial, or it never began.
    """
    trial = load_trial(study, number)
    if Attr.CONFIG not in trial.user_attrs:
        check_own(study)
        raise StorageError("the trial must have begun", got=f"trial {number}, {trial.state.name}")
    return trial


def find_finished(study: Study, number: int) -> FrozenTrial:
    """Return the complete trial of that number, with the epoch that validation chose.

    Raises:
        DefinitionError: the study was not made by kdsearch.
        StorageError: there is no such trial, it is not complete, or its chosen epoch is not stored.
    """
    trial = load_trial(study, number)
    if Attr.CONFIG not in trial.user_attrs:
        check_own(study)
    if trial.state != TrialState.COMPLETE:
        raise StorageError("the trial must be complete", got=f"trial {number}, {trial.state.name}", remedy=STATUS)
    best, seed = trial.user_attrs.get(Attr.BEST_EPOCH), trial.user_attrs.get(Attr.SEED)
    config = trial.user_attrs.get(Attr.CONFIG)
    if not isinstance(best, int) or not isinstance(seed, int) or not isinstance(config, dict):
        raise StorageError("the trial must say which epoch validation chose", got=f"trial {number}", remedy=STATUS)
    if not 1 <= best <= config.get("epochs", 0):
        raise StorageError("the trial's best epoch must be one of its epochs", got=f"trial {number}", remedy=STATUS)
    return trial


def check_data(study: Study, plan: Plan) -> None:
    """Refuse data or a teacher other than the study's.

    Raises:
        DefinitionError: a fingerprint differs.
        TeacherError: the teacher's weights cannot be read.
    """
    stored = study.user_attrs[StudyAttr.DEFINITION]
    expected = stored["data"]["fingerprint"]
    if plan.split.fingerprint != expected:
        raise DefinitionError(
            f"the data must be those of the study (fingerprint {expected})",
            got=plan.split.fingerprint,
            remedy="name their folder with --data-dir",
        )
    expected, found = stored["teacher"]["fingerprint"], teacher.fingerprint(plan.spec.teacher, plan.split)
    if found != expected:
        raise DefinitionError(
            f"the teacher must be that of the study (fingerprint {expected})",
            got=found,
            remedy="put the study's own weights back where its study file names them",
        )


def retrain(
    study: Study,
    number: int,
    *,
    whole: bool = False,
    seed: int | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
) -> Retrained:
    """Retrain a trial's student: same data, teacher, configuration and seed, as many epochs as it ran.

    Args:
        study: made by kdsearch.
        number: of the trial.
        whole: whether to train on the validation images too, to the epoch that the search chose.
        seed: of the student and its training; None: the trial's own.
        data_dir, device: see `optimize`.
        precision: of convolutions in training; "auto": the study's.
        progress: receives the epochs.

    Raises:
        KdsearchError: the study, the trial or the data set has changed.
    """
    progress = progress or Progress()
    trial = find_finished(study, number) if whole else find_trial(study, number)
    plan = rejoin(study, url="", data_dir=data_dir, device=device, precision=precision)
    check_data(study, plan)
    workshop = Workshop.rejoin(study, plan, progress, cost="flops")
    config: Config = trial.user_attrs[Attr.CONFIG]
    seed = trial.user_attrs[Attr.SEED] if seed is None else seed
    progress.study_started(0, 1)
    progress.trial_started(number, trial.user_attrs.get(Attr.ANCHOR), config)

    on_epoch = partial(progress.trial_epoch, number, epochs=config["epochs"])
    if whole:
        workshop = workshop.undivided()
        last = trial.user_attrs[Attr.BEST_EPOCH]
        student, _ = taught_to(workshop, config, seed, last=last, on_epoch=on_epoch)
        return Retrained(student, last, None, workshop.test(student), config)
    last = epochs_run(trial) or config["epochs"]
    best = Best()
    student, _ = taught_to(workshop, config, seed, last=last, on_epoch=on_epoch, best=best)
    student.load_state_dict(best.weights)
    return Retrained(student, best.epoch, best.accuracy, workshop.test(student), config)


def taught_to(
    workshop: Workshop,
    config: Config,
    seed: int,
    *,
    last: int,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    best: Best | None = None,
) -> tuple[nn.Module, float]:
    """Return a new student trained for its first `last` epochs, a prefix of its configuration's training.

    Args:
        workshop: of the study; that of `Workshop.undivided` trains on the whole training set.
        best: sees the student after each epoch, if a checkpoint is to be chosen; None: the last epoch's weights stay.

    Returns:
        The student and the seconds of its training, without validation.

    Raises:
        TrialError: the loss or the weights are not finite.
    """
    student = workshop.build(config, seed)
    seconds = 0.0
    with workshop.gate.working():
        for record in workshop.teach(student, config, seed):
            seconds += record.seconds
            if best is not None:
                best.see(record, student)
            on_epoch(record)
            if record.epoch == last:
                break
    return student, seconds


def save(student: Retrained, path: Path) -> None:
    """Save a student's weights as safetensors, atomically; a KdsearchError if the file cannot be written."""
    files.save_tensors(path, student.network.state_dict(), {"config": json.dumps(student.config)})
