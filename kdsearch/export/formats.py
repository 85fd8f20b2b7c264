"""The file formats of an exported student: how each is written, and how it is loaded in its runtime."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.data import Images, Split
from kdsearch.measure import onnx
from kdsearch.system import files

FORMATS = ("onnx", "pt2", "safetensors")
INT8 = "int8"
"""ONNX with integer arithmetic."""
KINDS = (*FORMATS, INT8)
OF_ONNX = ("onnx", INT8)
CALIBRATION = 512  # training images that determine the ranges of activations in int8
BATCH = 64
ENDINGS = {kind: kind for kind in FORMATS} | {INT8: "int8.onnx"}

Run = Callable[[Tensor], Tensor]
"""From images, (batch, channels, height, width), uint8, to logits."""


def write(network: nn.Module, split: Split, kind: str, path: Path, facts: dict[str, Any]) -> None:
    """Write a network: ONNX, ONNX in int8 and pt2 take images of bytes; safetensors holds only the weights.

    Args:
        network: takes prepared images.
        split: determines how bytes are prepared.
        kind: one of `KINDS`.
        path: the file to write.
        facts: metadata, stored in the file as JSON.
    """
    wrapped = onnx.Prepared(network, split).eval()
    example = split.test.images[:2]
    if kind in OF_ONNX:
        onnx.write(wrapped, example, path)
        if kind == INT8:
            quantise(path, path, calibration(split.train.images))
        onnx.describe(path, {"kdsearch": json.dumps(facts)})
    elif kind == "pt2":
        program = torch.export.export(wrapped, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, path, extra_files={"kdsearch.json": json.dumps(facts)})
    else:
        files.save_tensors(path, network.state_dict(), {"kdsearch": json.dumps(facts)})


def load(path: Path, split: Split, kind: str, *, threads: int, blank: nn.Module) -> Run:
    """Load a file in its own runtime, on the CPU.

    Args:
        path: of the file.
        split: as in `write`.
        kind: as in `write`.
        threads: of ONNX Runtime; torch has its own setting.
        blank: the network that safetensors are loaded into.
    """
    if kind in OF_ONNX:
        ready = onnx.session(path, threads=threads)
        return lambda images: torch.from_numpy(ready.run(None, {"images": images.numpy()})[0])
    if kind == "pt2":
        run: Run = torch.export.load(path).module()
        return run
    networks.load_state(blank, files.load_tensors(path, torch.device("cpu"))[0])
    return onnx.Prepared(blank, split).eval()


def runtime_of(kind: str) -> str:
    """Return the runtime that a format is verified in, with its version."""
    return onnx.version() if kind in OF_ONNX else f"torch {torch.__version__}"


def calibration(images: Images) -> Tensor:
    """Return the training images for calibration: a random draw with a fixed seed.

    Args:
        images: (count, channels, height, width), uint8.
    """
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
    return images[drawn]


def quantise(source: Path, target: Path, images: Tensor) -> None:
    """Write an ONNX file's network in int8.

    Args:
        source: the float file, with `images` as its input.
        target: the file to write.
        images: to calibrate on, (count, channels, height, width), uint8, at least one.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        parts = iter(images.split(BATCH))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {"images": part.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        quant_pre_process(source, folded, skip_symbolic_shape=True)  # folds batch norms into their convolutions
        quantize_static(
            folded,
            target,
            Batches(),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
