"""Networks as ONNX files: written, scored and timed in ONNX Runtime on the CPU."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from kdsearch.measure.accuracy import batch_of

FLOAT_PRODUCTS = ("Conv", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul")
ERRORS_ONLY = 3


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


def session(path: Path, *, threads: int = 1, profile: Path | None = None) -> onnxruntime.InferenceSession:
    """Return an ONNX Runtime session of a file on the CPU.

    Args:
        path: of the ONNX file.
        threads: per operation.
        profile: prefix of the profiles' file names; None: no profiling.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def logits(ready: onnxruntime.InferenceSession, images: Tensor) -> Tensor:
    """Return logits, (count, classes), of preprocessed images, (count, channels, height, width), in batches."""
    name = ready.get_inputs()[0].name
    parts = [ready.run(None, {name: part.numpy()})[0] for part in images.split(batch_of(images))]
    return torch.from_numpy(np.concatenate(parts))


def kernels(path: Path, images: Tensor) -> Counter[str]:
    """Return the kernels that run and their counts, from ONNX Runtime's own profile of one call."""
    with tempfile.TemporaryDirectory() as folder:
        ready = session(path, profile=Path(folder) / "profile")
        ready.run(None, {ready.get_inputs()[0].name: images.numpy()})
        events = json.loads(Path(ready.end_profiling()).read_text(encoding="utf-8"))
    return Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))


def float_products(path: Path, images: Tensor) -> Counter[str]:
    """Return the convolutions and matrix products that run in float: none in a network that really is int8."""
    return Counter({name: count for name, count in kernels(path, images).items() if name in FLOAT_PRODUCTS})


def timed(sessions: Sequence[onnxruntime.InferenceSession], batch: Tensor, *, rounds: int) -> list[list[float]]:
    """Return the seconds per batch of each session, timed `rounds` times alternately after one warm-up call.

    Args:
        sessions: of networks with the same input.
        batch: (batch, channels, height, width), the networks' input.
        rounds: at least 1.
    """
    fed = batch.numpy()
    calls = [(ready, {ready.get_inputs()[0].name: fed}) for ready in sessions]
    for ready, inputs in calls:
        ready.run(None, inputs)
    seconds: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for (ready, inputs), found in zip(calls, seconds, strict=True):
            begin = time.perf_counter()
            ready.run(None, inputs)
            found.append(time.perf_counter() - begin)
    return seconds
