"""The file formats of an exported student: how each is written, loaded in its runtime, verified and timed there."""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.data import Images, Split, repeated
from kdsearch.errors import KdsearchError, TeacherError
from kdsearch.measure import latency, onnx
from kdsearch.measure.accuracy import batch_of
from kdsearch.measure.gate import Gate
from kdsearch.records import Timing
from kdsearch.search.workshop import Workshop
from kdsearch.system import files, machine

FORMATS = ("onnx", "pt2", "safetensors")
INT8 = "int8"
"""ONNX with integer arithmetic."""
KINDS = (*FORMATS, INT8)
OF_ONNX = ("onnx", INT8)
CALIBRATION = 512  # training images that determine the ranges of activations in int8
BATCH = 64
POINTS = 0.001  # accuracy, a fraction: largest difference of a file from the network in torch
INT8_POINTS = 0.01  # largest loss of accuracy of an int8 file, a fraction; its predictions may differ
TIE = 1e-3  # predictions may differ where the two largest logits are this close, relative to the largest
UNTIMED = "untimed"  # key of the reason why a file was not timed
ENDINGS = {kind: kind for kind in FORMATS} | {INT8: "int8.onnx"}

Run = Callable[[Tensor], Tensor]
"""From images, (batch, channels, height, width), uint8, to logits."""


def write(network: nn.Module, split: Split, kind: str, path: Path, facts: dict[str, Any]) -> None:
    """Write a network: ONNX, ONNX in int8 and pt2 take images of bytes; safetensors holds only the weights.

    Args:
        network: takes prepared images.
        split: determines how bytes are prepared.
        kind: one of `KINDS`.
        path: of the file.
        facts: metadata, stored in the file as JSON.
    """
    wrapped = onnx.Prepared(network, split).eval()
    example = split.test.images[:2]
    if kind in OF_ONNX:
        onnx.write(wrapped, example, path)
        if kind == INT8:
            _quantise(path, calibration(split.train.images))
        onnx.describe(path, {"kdsearch": json.dumps(facts)})
    elif kind == "pt2":
        program = torch.export.export(wrapped, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, path, extra_files={"kdsearch.json": json.dumps(facts)})
    else:
        files.save_tensors(path, network.state_dict(), {"kdsearch": json.dumps(facts)})


def load(path: Path, split: Split, kind: str, *, threads: int, blank: nn.Module) -> Run:
    """Load a file in its own runtime, on the CPU.

    Args:
        path, split, kind: as in `write`.
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


def calibration(images: Images) -> Tensor:
    """Return the training images for calibration: a random draw with a fixed seed."""
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:CALIBRATION]
    return images[drawn]


def _quantise(path: Path, images: Tensor) -> None:
    """Turn an ONNX file in float into one in int8, calibrated on images of bytes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        parts = iter(images.split(BATCH))

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {"images": part.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        quant_pre_process(path, folded, skip_symbolic_shape=True)  # folds batch norms into their convolutions
        quantize_static(
            folded,
            path,
            Batches(),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )


def verify(shop: Workshop, student: nn.Module, kind: str, path: Path) -> dict[str, Any]:
    """Load a file, score it on the whole test set against torch and time it against the teacher exported alike.

    If the teacher cannot be exported, the timing's fields are None, and `UNTIMED` says why.

    Raises:
        KdsearchError: the file does not load, its predictions or its accuracy differ, or an int8 file loses more than
            `INT8_POINTS` or computes in float.
    """
    test = shop.split.test
    blank = copy.deepcopy(student)
    for parameter in blank.parameters():
        nn.init.zeros_(parameter)
    with torch.inference_mode():
        here = onnx.Prepared(student, shop.split).eval()
        size = batch_of(test.images)
        wanted = torch.cat([here(part) for part in test.images.split(size)])
        try:
            run = load(path, shop.split, kind, threads=shop.spec.latency.threads, blank=blank)
            logits = torch.cat([run(part) for part in test.images.split(size)])
        except Exception as error:
            raise KdsearchError(
                f"the exported file must load and run: {' '.join(str(error).split())[:200]}",
                remedy="the file was deleted; try another --format",
            ) from None
        scores = [(each.argmax(1) == test.labels).double().mean().item() for each in (wanted, logits)]
        if kind == INT8:
            _check_int8(path, test.images, scores)
        else:
            _check_same(wanted, logits, scores)
        try:
            timing = dataclasses.asdict(timed(shop, kind, run))
        except TeacherError as error:  # the student's file is good all the same
            timing = dict.fromkeys(field.name for field in dataclasses.fields(Timing)) | {
                UNTIMED: f"{error.rule}: {error.got}"
            }
    return {
        "test_accuracy": scores[1],
        "torch_test_accuracy": scores[0],
        "test_images": len(test),
        "changed": int((wanted.argmax(1) != logits.argmax(1)).sum()),
        **timing,
    }


def _check_int8(path: Path, images: Images, scores: list[float]) -> None:
    if products := onnx.float_products(path, images[:2]):
        raise KdsearchError(
            "an int8 file must compute all its products in integers",
            got=", ".join(f"{count} {name} in float" for name, count in products.items()),
            remedy="it was deleted; export without --int8",
        )
    if scores[0] - scores[1] > INT8_POINTS:
        raise KdsearchError(
            f"an int8 file may lose at most {100 * INT8_POINTS:g} point of test accuracy",
            got=f"{scores[1]:.2%} against {scores[0]:.2%} in torch",
            remedy="it was deleted; export without --int8",
        )


def _check_same(wanted: Tensor, logits: Tensor, scores: list[float]) -> None:
    top = wanted.topk(2, dim=1).values
    clear = (top[:, 0] - top[:, 1]) > TIE * top.abs().amax(1).clamp(min=1)
    changed = int(((wanted.argmax(1) != logits.argmax(1)) & clear).sum())
    if changed or abs(scores[0] - scores[1]) > POINTS:
        raise KdsearchError(
            f"the exported file must predict as torch does: {changed} of {len(logits)} test images differ, "
            f"accuracy {scores[1]:.2%} against {scores[0]:.2%}",
            remedy="the file was deleted; try another --format",
        )


def timed(shop: Workshop, kind: str, student: Run) -> Timing:
    """Time a loaded student against the teacher, exported alike but never in int8, on the search's images.

    Raises:
        TeacherError: the teacher cannot be exported.
    """
    how, split = shop.spec.latency, shop.split
    alike = "onnx" if kind == INT8 else kind
    batch = repeated(split.validation.images, how.batch)
    with tempfile.TemporaryDirectory() as folder, machine.threads(how.threads), torch.inference_mode():
        path = Path(folder) / f"teacher.{alike}"
        with onnx.exporting("the teacher cannot be exported"):
            write(shop.teacher.network, split, alike, path, {})
            run = load(path, split, alike, threads=how.threads, blank=copy.deepcopy(shop.teacher.network))
            run(batch)
        with Gate(torch.device("cpu")).alone():
            return latency.several(
                lambda: latency.compare(lambda: run(batch), lambda: student(batch), batch=len(batch), kind=kind)
            )
