"""The deck's "quantized" algorithm as a row of its own: an int8 student of a teacher with quantised feature maps.

The student is trained with quantisation in the loop, by the recipe of the row it is like, and deployed as an ONNX file
that ONNX Runtime runs in int8; accuracy and ratio are those of that file. The teacher and the same student in float run
in ONNX Runtime, too, so that the figures say what int8 gains on this machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from kdsearch import networks
from kdsearch.data import repeated
from kdsearch.distil.answers import Answers
from kdsearch.errors import KdsearchError
from kdsearch.measure import accuracy

if TYPE_CHECKING:
    from kdsearch.distil.qat import FakeQuantised
    from kdsearch.experiments.slides.deck_recipes import School
    from kdsearch.experiments.slides.rows import Settings

NEEDS = ("torchao", "onnx", "onnxruntime", "onnxscript")
CALIBRATION = 500  # training images that the largest feature is taken from
EXAMPLE = 2  # images: the least that an export with any batch takes


def missing() -> list[str]:
    """Packages that an int8 row needs and this machine lacks."""
    return [name for name in NEEDS if find_spec(name) is None]


def require() -> None:
    """Refuses an int8 row where packages for it are missing.

    Raises:
        KdsearchError: they are.
    """
    lacking = missing()
    if lacking:
        raise KdsearchError(
            "an int8 row needs torchao and ONNX Runtime", got=f"no {', '.join(lacking)}",
            remedy="pip install 'kdsearch[int8]', or leave the row out of --rows",
        )  # fmt: skip


@dataclass(frozen=True)
class Deployed:
    """An int8 student as it runs in ONNX Runtime.

    Attributes:
        accuracy: test accuracy of the file, a fraction.
        trained_accuracy: that of the fake-quantised network in training, a fraction.
        seconds: a batch of inference in turn: the teacher's, the float student's, the int8 student's, pair by pair.
        bytes: of the file.
        float_bytes: of the float student's file.
        float_products: convolutions and matrix products that did not run in int8.
    """

    accuracy: float
    trained_accuracy: float
    seconds: Sequence[Sequence[float]]
    bytes: int
    float_bytes: int
    float_products: int


def answers(school: School, bits: int) -> Answers:
    """The answers of the teacher with its last feature map quantised to so many bits, to the training images."""
    from kdsearch.distil.qat import QuantisedFeatures

    train = school.split.train
    with torch.inference_mode():
        _, features = networks.with_embedding(school.teacher.network, school.split.prepare(train.images[:CALIBRATION]))
    quantised = QuantisedFeatures(school.teacher.network, features.max().item(), bits).eval()
    return school.teacher.answers(train, network=quantised, kind=f"features{bits}")


def prepare(school: School, student: nn.Module) -> FakeQuantised:
    """The student, to be trained as if it were int8; on the CPU, where int8 is to run."""
    from kdsearch.distil.qat import prepare

    split = school.split
    return prepare(student.cpu(), split.prepare(split.test.images[:EXAMPLE].cpu())).to(split.train.labels.device)


def deploy(school: School, settings: Settings, trained: FakeQuantised, *, rounds: int) -> Deployed:
    """Writes teacher, float student and int8 student as ONNX files, scores the last and times all three.

    Args:
        school: of the row.
        settings: of the row: the float student is built anew, for time does not depend on weights.
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
