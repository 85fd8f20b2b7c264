"""Verify an exported file against its source network, and time it against the teacher exported alike."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.data import Images, repeated
from kdsearch.errors import KdsearchError
from kdsearch.export import formats
from kdsearch.measure import latency, onnx
from kdsearch.measure.accuracy import batch_of
from kdsearch.measure.gate import Gate
from kdsearch.records import Timing
from kdsearch.search.workshop import Workshop
from kdsearch.system import machine

POINTS = 0.001  # accuracy, a fraction: largest difference of a file from the network in torch
INT8_POINTS = 0.01  # largest loss of accuracy of an int8 file, a fraction; its predictions may differ
TIE = 1e-3  # predictions may differ where the two largest logits are this close, relative to the largest


def verify(shop: Workshop, student: nn.Module, kind: str, path: Path) -> dict[str, Any]:
    """Load a file, score it on the whole test set against torch and time it against the teacher exported alike.

    Raises:
        KdsearchError: the file does not load, its predictions or its accuracy differ, or an int8 file loses more than
            `INT8_POINTS` or computes in float.
    """
    test = shop.split.test
    blank = copy.deepcopy(student)
    for parameter in blank.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.inference_mode():
        here = onnx.Prepared(student, shop.split).eval()
        size = batch_of(test.images)
        wanted = torch.cat([here(part) for part in test.images.split(size)])
        try:
            run = formats.load(path, shop.split, kind, threads=shop.spec.latency.threads, blank=blank)
            logits = torch.cat([run(part) for part in test.images.split(size)])
        except Exception as error:
            raise KdsearchError(
                f"the exported file must load and run: {' '.join(str(error).split())[:200]}",
                remedy="the file was deleted; try another --format",
            ) from None
        scores = [(each.argmax(1) == test.labels).double().mean().item() for each in (wanted, logits)]
        if kind == formats.INT8:
            _check_int8(path, test.images, scores)
        else:
            _check_same(wanted, logits, scores)
        timing = timed(shop, kind, run)
    return {
        "test_accuracy": scores[1],
        "torch_test_accuracy": scores[0],
        "test_images": len(test),
        "changed": int((wanted.argmax(1) != logits.argmax(1)).sum()),
        **dataclasses.asdict(timing),
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


def timed(shop: Workshop, kind: str, student: formats.Run) -> Timing:
    """Time a loaded student against the teacher, exported alike but never in int8, on the search's images."""
    how, split = shop.spec.latency, shop.split
    alike = "onnx" if kind == formats.INT8 else kind
    batch = repeated(split.validation.images, how.batch)
    with tempfile.TemporaryDirectory() as folder, machine.threads(how.threads), torch.inference_mode():
        path = Path(folder) / f"teacher.{alike}"
        formats.write(shop.teacher.network, split, alike, path, {})
        run = formats.load(path, split, alike, threads=how.threads, blank=copy.deepcopy(shop.teacher.network))
        with Gate(torch.device("cpu")).alone():
            return latency.several(
                lambda: latency.compare(lambda: run(batch), lambda: student(batch), batch=len(batch), kind=kind)
            )
