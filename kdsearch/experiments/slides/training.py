"""Run one training of a row: train, score and time a student, in float or in int8, for storage with a trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from kdsearch import networks
from kdsearch.data import repeated
from kdsearch.distil.precision import trained_in
from kdsearch.errors import KdsearchError, TrialError
from kdsearch.experiments.slides import int8_row
from kdsearch.experiments.slides.deck_recipes import School
from kdsearch.experiments.slides.rows import Settings
from kdsearch.measure import accuracy
from kdsearch.measure.latency import eager_pairs, ratios
from kdsearch.records import Attr, EpochRecord
from kdsearch.stats import median_interval
from kdsearch.system import machine

PAIRS = 7  # timed pairs of an int8 student: a batch of the deck's can take seconds

Pairs = Sequence[Sequence[float]]
"""Seconds a batch of teacher and student, timed alternately."""
OnEpoch = Callable[[EpochRecord], None]


def time(school: School, settings: Settings) -> Pairs:
    """Time teacher and student as the deck did: eager, one thread on a CPU."""
    student = school.build(settings, seed=0)
    test = school.split.test.images
    batch = school.split.prepare(test[:] if school.deck.batch is None else repeated(test, school.deck.batch))
    with machine.threads(1):
        return eager_pairs(school.teacher.network, student, batch, to_host=school.deck.to_host)


def in_float(school: School, settings: Settings, seed: int, pairs: Pairs, on_epoch: OnEpoch) -> dict[str, Any]:
    """Train and score a student.

    Args:
        school: data, teacher and recipe.
        settings: of the row.
        seed: of the training.
        pairs: the timing of its architecture.
        on_epoch: called after each epoch.

    Returns:
        The attributes to store with the trial.

    Raises:
        KdsearchError: the training diverged.
    """
    student = school.build(settings, seed)
    found = _taught(school, student, settings, seed, on_epoch)
    test = accuracy(student, school.split.test, school.split.prepare)
    return found | _scored(test, pairs, networks.parameters(student), networks.size_bytes(student))


def in_int8(school: School, settings: Settings, seed: int, on_epoch: OnEpoch) -> dict[str, Any]:
    """Train a student with quantisation in the loop, deploy it in int8, score and time the deployed file.

    Arguments and errors are those of `in_float`; the timing is of the deployed network.
    """
    assert settings.bits is not None
    plain = school.build(settings, seed)
    schooled = dataclasses.replace(school, answers=int8_row.answers(school, settings.bits))
    student = int8_row.prepare(school, plain)
    found = _taught(schooled, student, settings, seed, on_epoch)
    deployed = int8_row.deploy(school, settings, student, rounds=PAIRS)
    teacher, in_float_seconds, in_int8_seconds = deployed.seconds
    extra = {
        "trained_accuracy": deployed.trained_accuracy,
        "float_seconds": list(in_float_seconds),
        "float_bytes": deployed.float_bytes,
        "float_products": deployed.float_products,
    }
    scored = _scored(deployed.accuracy, (teacher, in_int8_seconds), networks.parameters(plain), deployed.bytes)
    return found | scored | {Attr.INT8: extra}


def _taught(school: School, student: nn.Module, settings: Settings, seed: int, on_epoch: OnEpoch) -> dict[str, Any]:
    losses: list[float] = []
    seconds = 0.0
    try:
        for record in school.teach(student, settings, seed):
            losses.append(record.loss)
            seconds += record.seconds
            on_epoch(record)
    except TrialError as error:
        raise KdsearchError(
            f"the row's training must stay finite: {error}", remedy="run again: finished trainings are kept"
        ) from None
    trained = trained_in(student, school.split.train.labels.device, school.precision)
    return {Attr.LOSSES: losses, Attr.TRAIN_SECONDS: seconds, Attr.PRECISION: trained}


def _scored(test: float, pairs: Pairs, parameters: int, size: int) -> dict[str, Any]:
    return {
        Attr.TEST_ACCURACY: test,
        Attr.RATIO: median_interval(ratios(*pairs))[0],
        Attr.PAIRS: [list(seconds) for seconds in pairs],
        Attr.PARAMETERS: parameters,
        Attr.BYTES: size,
    }
