"""The card beside an exported file: the trial's own card, and the results of the files in their runtimes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna import Study

from kdsearch.data import Split
from kdsearch.data.pictures import PAPER, Scale
from kdsearch.export.formats import ENDINGS, INT8, KINDS, UNTIMED
from kdsearch.records import StudyAttr
from kdsearch.reporting import formatting
from kdsearch.reporting.collect import StudyData, collect
from kdsearch.reporting.formatting import records
from kdsearch.reporting.pages import document
from kdsearch.reporting.pages.one_trial import card
from kdsearch.stats import proportion_interval

# prints the class and the logits of image files; lies beside the ONNX file and classes.json
READ = '''import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path):
    """An image file as the network's input, (1, 3, {height}, {width}), uint8."""
    image = ImageOps.exif_transpose(Image.open(path))  # upright
    if image.mode.startswith(("I", "F")):  # grey of more than 8 bits
        top = {floats:g} if image.mode.startswith("F") else {integers:g}
        grey = np.asarray(image, dtype=np.float64) * (255 / top)
        image = Image.fromarray(np.rint(grey).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, {paper})
        image = Image.alpha_composite(paper, layer)
    image = image.convert("RGB").resize(({width}, {height}), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)[None]


classes = json.load(open("classes.json", encoding="utf-8"))
session = onnxruntime.InferenceSession("{file}")
images = np.concatenate([read(path) for path in sys.argv[1:]])
(logits,) = session.run(None, {{session.get_inputs()[0].name: images}})
for path, row in zip(sys.argv[1:], logits):
    print(path, classes[row.argmax()], *row)
'''

LICENCE = (
    "No licence comes with these weights. Before you pass them on, see that the licences of the data set, of the "
    "teacher's weights and of what those were trained on allow it, and write the licence that you choose here."
)


def text(study: Study, number: int, *, url: str, folder: Path, split: Split) -> str:
    """Return the model card, in Markdown, of a trial whose exported files are in a folder.

    Files that are missing, or differ from the verified ones, are left out; a password in the storage's URL is masked.
    """
    data = collect(study, storage_url=url)
    parts = [card(data, number).rstrip("\n")]
    row = next(row for row in records(data.trials) if row["number"] == number)
    for kind in KINDS:
        found = study.user_attrs.get(f"{StudyAttr.EXPORTED}{number}:{kind}")
        if not isinstance(found, Mapping):
            continue
        path = folder / Path(found["file"]).name
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == found["sha256"]:
            parts += [f"## File {document.code(path.name)}", document.facts(_file(found, data, row))]
    parts += ["## Input and output", document.facts(_input(split))]
    if split.scale is not None:
        parts += ["## From a picture to the input", document.facts(_preparation(split, split.scale))]
        onnx = folder / f"trial-{number}.{ENDINGS['onnx']}"
        if onnx.is_file():
            _, height, width = split.shape
            code = READ.format(
                height=height, width=width, floats=split.scale.floats, integers=split.scale.integers,
                paper=(*PAPER, 255), file=onnx.name,
            )  # fmt: skip
            parts += [f"This prints the class and the logits of files:\n\n```python\n{code}```"]
    parts += ["## Licence", LICENCE]
    return "\n\n".join(parts) + "\n"


def _file(found: Mapping[str, Any], data: StudyData, row: Mapping[str, Any]) -> list[tuple[str, object]]:
    what = "counted operations" if data.cost == "flops" else f"--cost {data.cost}"
    share = proportion_interval(found["test_accuracy"], found["test_images"])
    mean, low, high = map(formatting.percent, (share.mean, share.low, share.high))
    return [
        ("format", "onnx, in int8" if found["format"] == INT8 else found["format"]),
        ("ONNX opset", found.get("opset")),
        ("exported with", found["exporter"]),
        ("verified in", found["runtime"]),
        ("test accuracy there", f"{mean} ({low} to {high})"),
        ("predictions that are not torch's", f"{found['changed']} of {found['test_images']:,}"),
        ("test accuracy in the search", formatting.percent(row["test_accuracy"])),
        *_timing(found),
        ("ratio in the search", f"{formatting.interval(row['ratio'], row['ratio_low'], row['ratio_high'])} ({what})"),
        ("weights from", found["weights"]),
        ("size", formatting.size(found["bytes"])),
        ("SHA-256", found["sha256"]),
    ]


def _timing(found: Mapping[str, Any]) -> list[tuple[str, object]]:
    if found["ratio"] is None:
        return [("ratio there", f"not timed: {found[UNTIMED]}")]
    ratio = formatting.interval(found["ratio"], found["low"], found["high"])
    return [
        ("ratio there", f"{ratio}, batch {found['batch']}, CPU"),
        ("seconds a batch, teacher and student", f"{found['teacher_seconds']:.3g}, {found['student_seconds']:.3g}"),
    ]


def _input(split: Split) -> list[tuple[str, object]]:
    shape = ", ".join(map(str, split.test.images.shape[1:]))
    return [
        ("onnx and pt2 take", f"images of bytes, (any batch, {shape}); scaling and normalisation are inside"),
        ("safetensors hold", f"the weights alone; their network takes (bytes / {split.top:g} - {split.mean:g}) / "
                             f"{split.std:g} as float32"),
        ("give", f"logits, (batch, {len(split.classes)})"),
        ("classes, in this order", ", ".join(split.classes)),
    ]  # fmt: skip


def _preparation(split: Split, scale: Scale) -> list[tuple[str, object]]:
    _, height, width = split.shape
    return [
        ("colours", "RGB; grey becomes three equal channels"),
        ("orientation", "turned upright as its EXIF data say, before all else"),
        ("size", f"resized to {width} x {height} whatever its aspect was, with Pillow's BILINEAR (which smooths where "
                 "it shrinks)"),
        ("transparency", "laid over white"),
        ("more than 8 bits", f"integer grey is multiplied by 255 / {scale.integers:,.0f}, floating-point grey by "
                             f"255 / {scale.floats:,.0f}"),
        ("several frames", "the first one"),
    ]  # fmt: skip
