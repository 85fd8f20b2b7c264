"""Run one training of a row: train, score and time a student, in float or in int8, for storage with a trial."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdsearch import networks
from kdsearch.distil.answers import Answers
from kdsearch.distil.precision import trained_in
from kdsearch.errors import KdsearchError, TrialError
from kdsearch.experiments.slides.deck import School, Settings
from kdsearch.measure import accuracy
from kdsearch.measure.latency import eager_pairs, ratios
from kdsearch.records import Attr, EpochRecord
from kdsearch.stats import median_interval
from kdsearch.system import machine

if TYPE_CHECKING:
    from kdsearch.distil.qat import FakeQuantised

PAIRS = 7  # timed pairs of an int8 student: a batch of the deck's can take seconds

Pairs = Sequence[Sequence[float]]
"""Seconds a batch of teacher and student, timed alternately."""
OnEpoch = Callable[[EpochRecord], None]


def time(school: School, settings: Settings) -> Pairs:
    """Time teacher and student as the deck did: eager, one thread on a CPU."""
    student = school.build(settings, seed=0)
    batch = school.split.prepare(school.timed(school.split.test.images))
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
    return found | _scored(test, pairs, student, networks.size_bytes(student))


def in_int8(school: School, settings: Settings, seed: int, on_epoch: OnEpoch) -> dict[str, Any]:
    """Train a student with quantisation in the loop, deploy it in int8, score and time the deployed file.

    Arguments and errors are those of `in_float`; the timing is of the deployed network.
    """
    from kdsearch.distil.qat import prepare

    split = school.split
    schooled = dataclasses.replace(school, answers=_quantised_answers(school, settings))
    example = split.prepare(split.test.images[:EXAMPLE].cpu())
    # prepared on the CPU, where the int8 file runs
    student = prepare(school.build(settings, seed).cpu(), example).to(split.train.labels.device)
    return _taught(schooled, student, settings, seed, on_epoch) | _deployed(school, settings, student)


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


def _scored(test: float, pairs: Pairs, student: nn.Module, size: int) -> dict[str, Any]:
    return {
        Attr.TEST_ACCURACY: test,
        Attr.RATIO: median_interval(ratios(*pairs))[0],
        Attr.PAIRS: [list(seconds) for seconds in pairs],
        Attr.PARAMETERS: networks.parameters(student),
        Attr.BYTES: size,
    }


NEEDS = ("torchao", "onnx", "onnxruntime", "onnxscript")
CALIBRATION = 500  # training images that determine the largest feature
EXAMPLE = 2  # images: the smallest example for an export with a variable batch


def missing() -> list[str]:
    """Return the packages that an int8 row needs and this machine lacks."""
    return [name for name in NEEDS if find_spec(name) is None]


def require() -> None:
    """Raise KdsearchError where a package of an int8 row is missing."""
    if lacking := missing():
        raise KdsearchError(
            "an int8 row needs torchao and ONNX Runtime", got=f"no {', '.join(lacking)}",
            remedy="pip install 'kdsearch[int8]', or leave the row out of --rows",
        )  # fmt: skip


def _quantised_answers(school: School, settings: Settings) -> Answers:
    """Return the training-set outputs of the teacher with its last feature map quantised to the row's bits."""
    from kdsearch.distil.qat import QuantisedFeatures

    assert settings.bits is not None
    train = school.split.train
    with torch.inference_mode():
        _, features = networks.with_embedding(school.teacher.network, school.split.prepare(train.images[:CALIBRATION]))
    quantised = QuantisedFeatures(school.teacher.network, features.max().item(), settings.bits).eval()
    return school.teacher.answers(train, network=quantised, kind=f"features{settings.bits}")


def _deployed(school: School, settings: Settings, trained: FakeQuantised) -> dict[str, Any]:
    """Write teacher, float student and int8 student as ONNX files, score the last and time all three."""
    from kdsearch.distil.qat import convert
    from kdsearch.measure import onnx

    test = school.split.test.to(torch.device("cpu"))
    images = school.split.prepare(test.images[:])
    example = images[:EXAMPLE]
    trained = trained.cpu()
    student = school.build(settings, seed=0)  # untrained: time does not depend on weights
    compared = {"teacher": school.teacher.network, "float": student, "int8": convert(trained, example)}
    with tempfile.TemporaryDirectory() as folder:
        files = [onnx.write(network, example, Path(folder) / f"{name}.onnx") for name, network in compared.items()]
        sessions = [onnx.session(file) for file in files]
        hits = onnx.logits(sessions[2], images).argmax(1) == test.labels
        teacher, in_float, in_int8 = onnx.timed(sessions, school.timed(images), rounds=PAIRS)
        extra = {
            "trained_accuracy": accuracy(trained, test, school.split.prepare),
            "float_seconds": list(in_float),
            "float_bytes": files[1].stat().st_size,
            "float_products": sum(onnx.float_products(files[2], images[:8]).values()),
        }
        scored = _scored(hits.double().mean().item(), (teacher, in_int8), student, files[2].stat().st_size)
        return scored | {Attr.INT8: extra}
