"""The deck's "quantized" algorithm as a row of its own: an int8 student of a teacher with quantised feature maps.

The student is trained with quantisation in the loop, by the recipe of its float counterpart, and deployed as an ONNX
file that ONNX Runtime runs in int8; accuracy and ratio are those of that file. The teacher and the same student in
float run in ONNX Runtime, too, so that the figures show what int8 gains on this machine.
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
