"""Read one image file as bytes: turned upright, in colour, resized."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdsearch.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")  # not EPS: it runs programs
DEPTHS = (255.0, 1_023.0, 4_095.0, 16_383.0, 65_535.0)  # the largest values of 8, 10, 12, 14 and 16 bits
PAPER = (255, 255, 255)  # background of transparent images
ORIENTATION = 0x0112  # a tag of EXIF
HEAD = 26  # bytes that hold a file's format signature, and a PNG's bits a channel


@dataclass(frozen=True)
class Scale:
    """The values that map to 255 in images of more than 8 bits, one rule for all images of a set.

    Attributes:
        integers: of 16-bit and 32-bit integer grey.
        floats: of floating-point grey.
    """

    integers: float = DEPTHS[-1]
    floats: float = 1.0


FULL = Scale()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings about files that it decodes anyway; affects all threads, so it must not be nested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def version() -> str:
    """Return the version of decoding, for cache keys: a hash of this module's text, and Pillow's version."""
    text = Path(__file__).read_bytes()
    return f"{hashlib.blake2b(text, digest_size=8).hexdigest()} Pillow {metadata.version('pillow')}"


def read(path: Path, size: int | None, scale: Scale = FULL) -> Bytes | str:
    """Return the first frame of an image file, or why it cannot be read.

    It is turned as its EXIF orientation says. Grey becomes three equal channels, transparency becomes white, and
    grey of more than 8 bits is scaled to 8 bits, not clipped.

    Args:
        path: of the file.
        size: pixels to resize height and width to, whatever the aspect ratio; None: the size is kept.
        scale: of images of more than 8 bits.

    Returns:
        (height, width, 3), or a reason.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=formats()) as image:
            colour = in_colour(upright(image), scale)
            if size is not None and colour.size != (size, size):
                colour = colour.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(colour, dtype=np.uint8)
    except UnidentifiedImageError:
        return what_it_is(path)
    except Image.DecompressionBombError:
        return f"it has more pixels than Pillow decodes ({2 * (Image.MAX_IMAGE_PIXELS or 0):,}): make it smaller"
    except (OSError, ValueError, SyntaxError) as error:
        return reason(error)


def reason(error: BaseException) -> str:
    """Return an error's message in one line."""
    words = getattr(error, "strerror", None) or str(error)
    return " ".join(words.split()) or type(error).__name__


def what_it_is(path: Path) -> str:
    """Return why a file is no image, as far as its first bytes tell."""
    head = path.read_bytes()[:64] if path.stat().st_size < 2**20 else b""
    if path.stat().st_size == 0:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer (`git lfs pull` fetches the image)"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page"
    return "it is no image"


def is_image(path: Path) -> bool:
    """Whether a file begins like an image; for files without the suffix of one."""
    from PIL import Image, UnidentifiedImageError

    try:
        with quiet(), Image.open(path, formats=formats()):
            return True
    except (UnidentifiedImageError, ValueError, SyntaxError):
        return False
    except (OSError, Image.DecompressionBombError):
        return True  # `read` reports the error


@cache
def formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that the installed Pillow supports."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF orientation says, unchanged where its EXIF data cannot be read.

    Pillow's own `exif_transpose` also writes the EXIF data again, and fails at any tag that it cannot write, such as a
    GPS position of 0/0 degrees (Pillow's issues 8548 and 8605).
    """
    from PIL import Image

    image.load()  # raises errors of the image itself outside of the try block for EXIF
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow raises many types here, and browsers show such an image, too
        return image
    turns = Image.Transpose
    methods = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
        6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90,
    }  # fmt: skip
    return image.transpose(methods[orientation]) if orientation in methods else image


def in_colour(image: Image.Image, scale: Scale = FULL) -> Image.Image:
    """Convert an image to 8-bit RGB.

    Raises:
        ValueError: the scale of its values is unknown.
    """
    from PIL import Image

    if is_deep(image.mode):
        return Image.fromarray(_scaled(np.asarray(image), image.mode, scale)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*PAPER, 255)), layer).convert("RGB")
    return image.convert("RGB")


def is_deep(mode: str) -> bool:
    """Whether a Pillow mode holds grey of more than 8 bits."""
    return mode.startswith(("I", "F"))


def _scaled(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]], mode: str, scale: Scale) -> Bytes:
    top = scale.floats if mode.startswith("F") else scale.integers
    grey = values.astype(np.float64)
    if not (grey.min() >= 0 and grey.max() <= top):
        raise ValueError(f"grey values must lie between 0 and {top:g}, not {grey.min():g} and {grey.max():g}")
    return np.rint(grey * (255 / top)).astype(np.uint8)


def scale_of(paths: Sequence[Path]) -> tuple[Scale, list[str]]:
    """Return the scale of a set's images of more than 8 bits: the smallest number of bits that holds all their values.

    Unreadable images are ignored.

    Returns:
        The scale, and a line that describes it where it is unusual.

    Raises:
        DataError: 16-bit colour does not use its upper bits; Pillow keeps only the upper 8.
    """
    with quiet(), ThreadPoolExecutor(os.cpu_count()) as pool:
        ranges = [found for found in pool.map(_range, paths) if found is not None]
    tops = {kind: max((top for each, top in ranges if each == kind), default=0.0) for kind in "IFC"}
    if 0 < tops["C"] < 128 or (tops["C"] == 0 and any(kind == "C" for kind, _ in ranges)):
        raise DataError(
            "16-bit colour images must use their upper bit, for the upper 8 bits are kept",
            got=f"no value above {256 * tops['C'] + 255:,.0f} in {sum(kind == 'C' for kind, _ in ranges):,} images",
            remedy="save them with 8 bits a channel",
        )
    fitting = {kind: next((top for top in DEPTHS if tops[kind] <= top), DEPTHS[-1]) for kind in "IF"}
    scale = Scale(integers=fitting["I"] if tops["I"] else FULL.integers, floats=1.0 if tops["F"] <= 1 else fitting["F"])
    counts = {kind: sum(each == kind for each, _ in ranges) for kind in "IF"}
    return scale, [
        f"{counts[kind]:,} of {len(paths):,} images hold {name} numbers up to {tops[kind]:,.6g}: {top:,.0f} becomes "
        "255, in all of them"
        for kind, name, top, usual in (
            ("I", "integer", scale.integers, FULL.integers),
            ("F", "floating-point", scale.floats, FULL.floats),
        )
        if top != usual
    ]


def _range(path: Path) -> tuple[str, float] | None:
    """Return kind and largest value of an image of more than 8 bits; None for other and unreadable images.

    Kinds: "I" for integer grey, "F" for floating-point grey, "C" for 16-bit colour, of which Pillow keeps upper bytes.
    """
    from PIL import Image

    try:
        with path.open("rb") as file:
            if not _may_be_deep(file.read(HEAD)):
                return None
        with Image.open(path, formats=formats()) as image:
            raw = str(image.tile[0][3]) if image.tile else ""
            if is_deep(image.mode):
                return image.mode[0], float(np.nanmax(np.asarray(image)))
            return ("C", float(np.asarray(image.convert("RGB")).max())) if ";16" in raw else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _may_be_deep(head: bytes) -> bool:
    """Whether a file with this head may hold more than 8 bits a channel: 16-bit PNG, TIFF, netpbm, JPEG 2000."""
    if head.startswith(b"\x89PNG"):
        return head[24:25] == b"\x10"
    return head.startswith((b"II", b"MM", b"P", b"\x00\x00\x00\x0cjP", b"\xff\x4f\xff\x51"))
