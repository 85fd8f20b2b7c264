"""Convert a float ONNX file to int8: static quantisation by ONNX Runtime, calibrated on training images.

Activations are uint8, one range a tensor; weights are int8 of 7 bits, one range a channel: kernels without VNNI add two
uint8 x int8 products in 16 bits, which 8 bits overflow. The logits stay float, because they decide the class.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from kdsearch.data import Images

CALIBRATION = 512  # training images that determine the ranges of activations
BATCH = 64


def calibration(images: Images) -> Tensor:
    """Return the training images for calibration: a random draw with a fixed seed.

    Args:
        images: (count, channels, height, width), uint8.
    """
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
    return images[drawn]


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images as the network's input, batch by batch, for ONNX Runtime."""

    def __init__(self, images: Tensor) -> None:
        self._parts = iter(images.split(BATCH))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, or None after the last one."""
        part = next(self._parts, None)
        return None if part is None else {"images": part.numpy()}


def quantise(source: Path, target: Path, images: Tensor) -> None:
    """Write an ONNX file's network in int8.

    Args:
        source: the float file, with `images` as its input.
        target: the file to write.
        images: to calibrate on, (count, channels, height, width), uint8, at least one.
    """
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        quant_pre_process(source, folded, skip_symbolic_shape=True)  # folds batch norms into their convolutions
        quantize_static(
            folded,
            target,
            _Batches(images),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
