"""One image file as bytes: turned upright, in colour, of one size."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
DEEP = 65_535  # the largest value of 16 bits
PAPER = (255, 255, 255)  # what shows through where an image is transparent


@cache
def version() -> str:
    """What decides the bytes that a file is read as, beside the file: this module's text and Pillow's version."""
    text = Path(__file__).read_bytes()
    return f"{hashlib.blake2b(text, digest_size=8).hexdigest()} Pillow {metadata.version('pillow')}"


def read(path: Path, size: int | None) -> Bytes | str:
    """The first frame of an image file, or why it cannot be read.

    It is turned as its EXIF orientation says. Grey becomes three equal channels, what is transparent shows white, and
    16-bit grey is scaled to 8 bits, not clipped.

    Args:
        path: of the file.
        size: pixels to resize height and width to, whatever their ratio was; None: as they are.

    Returns:
        (height, width, 3), or a reason.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            colour = in_colour(ImageOps.exif_transpose(image))
            if size is not None and colour.size != (size, size):
                colour = colour.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(colour, dtype=np.uint8)
    except UnidentifiedImageError:
        return "it is no image"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return " ".join(str(error).split()) or type(error).__name__


def in_colour(image: Image.Image) -> Image.Image:
    """The image in 8-bit RGB.

    Raises:
        ValueError: it holds numbers that no rule says how to scale.
    """
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scaled(np.asarray(image), image.mode)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*PAPER, 255)), layer).convert("RGB")
    return image.convert("RGB")


def _scaled(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]], mode: str) -> Bytes:
    """Grey values as bytes: 16-bit ones by 65,535, floating-point ones by 1."""
    top = 1.0 if mode.startswith("F") else float(DEEP)
    grey = values.astype(np.float64)
    if not (grey.min() >= 0 and grey.max() <= top):
        raise ValueError(f"grey values must lie between 0 and {top:g}, not {grey.min():g} and {grey.max():g}")
    return np.rint(grey * (255 / top)).astype(np.uint8)
