"""Networks as shipped, from image bytes to logits, and their ratio in ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from torch import Tensor, nn

from kdsearch.data import Split, repeated
from kdsearch.errors import KdsearchError
from kdsearch.measure import latency
from kdsearch.records import Timing
from kdsearch.spec import LatencySpec
from kdsearch.system import machine

NEEDS = ("onnx", "onnxscript", "onnxruntime")


class Prepared(nn.Module):
    """A network preceded by its preprocessing, so that scaling and normalisation are part of the shipped file.

    Args:
        network: takes float32.
        split: defines the preprocessing.
    """

    def __init__(self, network: nn.Module, split: Split) -> None:
        super().__init__()
        self.network = network
        self.scale, self.shift = 1.0 / (split.top * split.std), split.mean / split.std

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes), of images, (batch, channels, height, width), uint8."""
        scaled = images.float() * self.scale
        logits: Tensor = self.network(scaled - self.shift if self.shift else scaled)
        return logits


def require(what: str) -> None:
    """Refuse to go on without ONNX Runtime, before anything is trained.

    Raises:
        KdsearchError: a package is missing.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise KdsearchError(
            f"{what} needs {', '.join(NEEDS)}",
            got=f"no {', '.join(missing)}",
            remedy="pip install 'kdsearch[onnx]'",
        )


def version() -> str:
    """Return the runtime's name and version, as quoted beside measurements."""
    return f"onnxruntime {machine.package_version('onnxruntime')}"


def measure(teacher: nn.Module, student: nn.Module, split: Split, how: LatencySpec) -> Timing:
    """Measure the inference ratio of two networks, exported alike, in ONNX Runtime on the CPU.

    Args:
        teacher, student: not changed.
        split: gives the timed images and the preprocessing.
        how: CPU threads and batch size.
    """
    from kdsearch.measure import onnx

    batch = repeated(split.validation.images, how.batch).cpu()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.onnx" for name in ("teacher", "student")]
        for path, network in zip(files, (teacher, student), strict=True):
            onnx.write(Prepared(network, split), batch[:2] if len(batch) > 1 else batch.repeat(2, 1, 1, 1), path)
        return timed(files[0], files[1], batch, how)


def timed(teacher: Path, student: Path, batch: Tensor, how: LatencySpec) -> Timing:
    """Measure the ratio of two ONNX files on an input batch, (batch, channels, height, width)."""
    from kdsearch.measure import onnx

    def calls(path: Path) -> tuple[latency.Call, latency.Call]:
        ready, fed, image = onnx.session(path, threads=how.threads), batch.numpy(), batch[:1].numpy()
        name = ready.get_inputs()[0].name
        return lambda: ready.run(None, {name: fed}), lambda: ready.run(None, {name: image})

    (whole_teacher, one_teacher), (whole_student, one_student) = calls(teacher), calls(student)
    alone = one_teacher, one_student
    return latency.compare(whole_teacher, whole_student, batch=len(batch), kind="onnx", alone=alone)
