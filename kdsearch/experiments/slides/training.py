"""Run one training of a row: train, score and time a student, in float or in int8, for storage with a trial."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kdsearch import networks
from kdsearch.data import repeated
from kdsearch.distil.answers import Answers
from kdsearch.distil.precision import trained_in
from kdsearch.errors import KdsearchError, TrialError
from kdsearch.experiments.slides.deck_recipes import School
from kdsearch.experiments.slides.rows import Settings
from kdsearch.measure import accuracy
from kdsearch.measure.latency import eager_pairs, ratios
from kdsearch.records import Attr, EpochRecord
from kdsearch.stats import median_interval
from kdsearch.system import machine

if TYPE_CHECKING:
    from kdsearch.distil.qat import FakeQuantised
    from kdsearch.experiments.slides.deck_recipes import School
    from kdsearch.experiments.slides.rows import Settings

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
    schooled = dataclasses.replace(school, answers=answers(school, settings.bits))
    student = prepare(school, plain)
    found = _taught(schooled, student, settings, seed, on_epoch)
    deployed = deploy(school, settings, student, rounds=PAIRS)
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


NEEDS = ("torchao", "onnx", "onnxruntime", "onnxscript")
CALIBRATION = 500  # training images that determine the largest feature
EXAMPLE = 2  # images: the smallest example for an export with a variable batch


def missing() -> list[str]:
    """Return the packages that an int8 row needs and this machine lacks."""
    return [name for name in NEEDS if find_spec(name) is None]


def require() -> None:
    """Refuse an int8 row where its packages are missing.

    Raises:
        KdsearchError: a package is missing.
    """
    lacking = missing()
    if lacking:
        raise KdsearchError(
            "an int8 row needs torchao and ONNX Runtime", got=f"no {', '.join(lacking)}",
            remedy="pip install 'kdsearch[int8]', or leave the row out of --rows",
        )  # fmt: skip


@dataclass(frozen=True)
class Deployed:
    """Results of an int8 student in ONNX Runtime.

    Attributes:
        accuracy: test accuracy of the file, a fraction.
        trained_accuracy: test accuracy of the fake-quantised network in training, a fraction.
        seconds: a batch of inference, pair by pair: the teacher's, the float student's, the int8 student's.
        bytes: size of the file.
        float_bytes: size of the float student's file.
        float_products: convolutions and matrix products that did not run in int8.
    """

    accuracy: float
    trained_accuracy: float
    seconds: Sequence[Sequence[float]]
    bytes: int
    float_bytes: int
    float_products: int


def answers(school: School, bits: int) -> Answers:
    """Return the training-set outputs of the teacher with its last feature map quantised to `bits` bits."""
    from kdsearch.distil.qat import QuantisedFeatures

    train = school.split.train
    with torch.inference_mode():
        _, features = networks.with_embedding(school.teacher.network, school.split.prepare(train.images[:CALIBRATION]))
    quantised = QuantisedFeatures(school.teacher.network, features.max().item(), bits).eval()
    return school.teacher.answers(train, network=quantised, kind=f"features{bits}")


def prepare(school: School, student: nn.Module) -> FakeQuantised:
    """Prepare a student for training with fake quantisation; on the CPU, where the int8 file runs."""
    from kdsearch.distil.qat import prepare

    split = school.split
    return prepare(student.cpu(), split.prepare(split.test.images[:EXAMPLE].cpu())).to(split.train.labels.device)


def deploy(school: School, settings: Settings, trained: FakeQuantised, *, rounds: int) -> Deployed:
    """Write teacher, float student and int8 student as ONNX files, score the last and time all three.

    Args:
        school: of the row.
        settings: of the row: the float student is built anew, because time does not depend on weights.
        trained: the fake-quantised student.
        rounds: of timing.
    """
    from kdsearch.distil.qat import convert
    from kdsearch.measure import onnx

    test = school.split.test.to(torch.device("cpu"))
    images = school.split.prepare(test.images[:])
    example = images[:EXAMPLE]
    trained = trained.cpu()
    with tempfile.TemporaryDirectory() as folder:
        files = [
            onnx.write(network, example, Path(folder) / f"{name}.onnx")
            for name, network in {
                "teacher": school.teacher.network,
                "float": school.build(settings, seed=0),
                "int8": convert(trained, example),
            }.items()
        ]
        sessions = [onnx.session(file) for file in files]
        batch = images if school.deck.batch is None else repeated(images, school.deck.batch)
        hits = onnx.logits(sessions[2], images).argmax(1) == test.labels
        return Deployed(
            accuracy=hits.double().mean().item(),
            trained_accuracy=accuracy(trained, test, school.split.prepare),
            seconds=onnx.timed(sessions, batch, rounds=rounds),
            bytes=files[2].stat().st_size,
            float_bytes=files[1].stat().st_size,
            float_products=sum(onnx.float_products(files[2], images[:8]).values()),
        )
