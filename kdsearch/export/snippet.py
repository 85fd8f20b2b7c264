"""The input of an exported network of pictures: facts for a card, and code that needs only Pillow and numpy."""

from __future__ import annotations

from kdsearch.data import Split
from kdsearch.data.pictures import PAPER, Scale

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


def facts(split: Split, scale: Scale) -> list[tuple[str, object]]:
    """List how a picture is prepared for the network, for a table."""
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


def code(split: Split, scale: Scale, file: str) -> str:
    """Return a Python script that prints the class and the logits of image files.

    Args:
        split: of pictures.
        scale: of images of more than 8 bits.
        file: name of the ONNX file, which lies beside `classes.json`.
    """
    _, height, width = split.shape
    return READ.format(
        height=height, width=width, floats=scale.floats, integers=scale.integers, paper=(*PAPER, 255), file=file
    )
