"""Networks as ONNX files, from image bytes to logits: written, scored and timed in ONNX Runtime on the CPU."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from kdsearch.data import Split, repeated
from kdsearch.errors import KdsearchError, TeacherError
from kdsearch.measure import latency
from kdsearch.measure.accuracy import batch_of
from kdsearch.records import Timing
from kdsearch.spec import LatencySpec
from kdsearch.system import machine

if TYPE_CHECKING:  # of an extra: functions import it and `onnx`
    from onnxruntime import InferenceSession

NEEDS = ("onnx", "onnxscript", "onnxruntime")
FLOAT_PRODUCTS = ("Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul")
ERRORS_ONLY = 3
REWRITE = "write its forward in torch operations, without branches on values"
LONGEST = 200  # characters of an exporter's error


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


@contextmanager
def exporting(rule: str, *, remedy: str = "") -> Iterator[None]:
    """Turn any error of a teacher's export into one line: its network may be any code.

    Raises:
        TeacherError: the rule, with the exporter's reason.
    """
    try:
        with redirect_stderr(io.StringIO()):  # where torch prints the graph that it could not finish
            yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:LONGEST] or type(error).__name__
        raise TeacherError(rule, got=reason, remedy=remedy) from None


def check_teacher(network: nn.Module, split: Split, what: str, *, remedy: str) -> None:
    """Refuse a teacher that cannot be exported or does not run in ONNX Runtime, before anything is trained.

    Args:
        network: of the teacher; its weights do not matter.
        split: gives its images and preprocessing.
        what: needs it.
        remedy: what to do instead.

    Raises:
        TeacherError: it cannot.
    """
    example = split.test.images[:2].cpu()
    with (
        tempfile.TemporaryDirectory() as folder,
        exporting(f"{what} needs a teacher that can be exported to ONNX", remedy=remedy),
    ):
        logits(session(write(Prepared(network, split), example, Path(folder) / "teacher.onnx")), example)


def version() -> str:
    """Return the runtime's name and version, as quoted beside measurements."""
    return f"onnxruntime {machine.package_version('onnxruntime')}"


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


def write(network: nn.Module, example: Tensor, path: Path) -> Path:
    """Write a network as one ONNX file for any batch size, from `images` to `logits`.

    Args:
        network: not changed; written in evaluation mode if it has one.
        example: (batch, channels, height, width), at least two images of its input.
        path: of the file.
    """
    still = copy.deepcopy(network).cpu()
    if not isinstance(still, torch.fx.GraphModule):  # an exported graph has no modes
        still.eval()
    program = torch.export.export(still, (example.cpu(),), dynamic_shapes=({0: Dim.DYNAMIC},))
    torch.onnx.export(
        program, f=path, external_data=False, verbose=False, input_names=["images"], output_names=["logits"]
    )
    return path


def describe(path: Path, metadata: Mapping[str, str]) -> None:
    """Write metadata into an ONNX file, beside those of its exporter."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)


def opset(path: Path) -> int:
    """Return the version of ONNX's operator set that a file requires."""
    import onnx

    return max(int(used.version) for used in onnx.load(path).opset_import if used.domain in ("", "ai.onnx"))


def session(path: Path, *, threads: int = 1, profile: Path | None = None) -> InferenceSession:
    """Return an ONNX Runtime session of a file on the CPU.

    Args:
        path: of the ONNX file.
        threads: per operation.
        profile: prefix of the profiles' file names; None: no profiling.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _call(ready: InferenceSession, images: Tensor) -> Callable[[], list[np.ndarray]]:
    return partial(ready.run, None, {ready.get_inputs()[0].name: images.numpy()})


def logits(ready: InferenceSession, images: Tensor) -> Tensor:
    """Return logits, (count, classes), of preprocessed images, (count, channels, height, width), in batches."""
    return torch.from_numpy(np.concatenate([_call(ready, part)()[0] for part in images.split(batch_of(images))]))


def float_products(path: Path, images: Tensor) -> Counter[str]:
    """Return the convolutions and matrix products that run in float: none in a network that really is int8.

    They and their counts are from ONNX Runtime's own profile of one call.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready = session(path, profile=Path(folder) / "profile")
        _call(ready, images)()
        events = json.loads(Path(ready.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    return Counter(name for name in kernels if name in FLOAT_PRODUCTS)


def timed(sessions: Sequence[InferenceSession], batch: Tensor, *, rounds: int) -> list[list[float]]:
    """Return the seconds per batch of each session, timed `rounds` times alternately after one warm-up call.

    Args:
        sessions: of networks with the same input.
        batch: (batch, channels, height, width), the networks' input.
        rounds: at least 1.
    """
    calls = [_call(ready, batch) for ready in sessions]
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, seconds, strict=True):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
    return seconds


def measure(teacher: nn.Module, student: nn.Module, split: Split, how: LatencySpec) -> Timing:
    """Measure the inference ratio of two networks, exported alike with their preprocessing.

    Args:
        teacher, student: not changed.
        split: gives the timed images and the preprocessing.
        how: CPU threads and batch size.
    """
    batch = repeated(split.validation.images, how.batch).cpu()
    example = batch[:2] if len(batch) > 1 else batch.repeat(2, 1, 1, 1)
    with tempfile.TemporaryDirectory() as folder:
        teacher_file, student_file = (
            write(Prepared(network, split), example, Path(folder) / f"{name}.onnx")
            for name, network in (("teacher", teacher), ("student", student))
        )
        return measure_files(teacher_file, student_file, batch, how)


def measure_files(teacher: Path, student: Path, batch: Tensor, how: LatencySpec) -> Timing:
    """Measure the ratio of two ONNX files on an input batch, (batch, channels, height, width)."""
    ready = [session(path, threads=how.threads) for path in (teacher, student)]
    whole, alone = ([_call(each, part) for each in ready] for part in (batch, batch[:1]))
    return latency.compare(*whole, batch=len(batch), kind="onnx", alone=(alone[0], alone[1]))
