"""Images in a file that is read in batches, for data sets larger than memory."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdsearch.data.pictures import Bytes
from kdsearch.errors import DataError
from kdsearch.system import files

AHEAD = 4  # batches that are prefetched
READERS = 2  # prefetching threads
TENSOR = "images"
ROOM = 2**26  # bytes of the disk to leave free
Shape = tuple[int, int, int, int]  # count, channels, height and width of images


class Handle:
    """A file opened for reading, closed when this object is deleted."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@dataclass(frozen=True)
class ImageFile:
    """The single tensor of a safetensors file; `files.load_tensors` reads the same file whole, as `images`."""

    path: Path
    shape: Shape
    offset: int  # of the first image's first byte
    handle: Handle = field(compare=False, repr=False)  # open: readable even after another process removes the file

    @property
    def image_bytes(self) -> int:
        return int(np.prod(self.shape[1:]))

    def read(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]], *, pinned: bool = False) -> Tensor:
        """Read images by their rows, (rows, channels, height, width), uint8.

        They are read, not mapped: a mapped file counts to a process's memory and is no faster.

        Raises:
            DataError: the file was cut short, or its disk fails.
        """
        images = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8, pin_memory=pinned)
        places = images.numpy().reshape(len(rows), self.image_bytes)
        try:
            for place, row in zip(places, rows.tolist(), strict=True):
                start = self.offset + row * self.image_bytes
                if os.preadv(self.handle.number, [place.data], start) != self.image_bytes:
                    raise OSError("it was cut short")
        except OSError as error:
            raise DataError(
                f"the file of decoded images must stay whole while it is used: {error.strerror or error}",
                got=self.path,
                remedy="run again: it is rebuilt",
            ) from None
        return images


class Stored:
    """Images in a file with the interface of a tensor: slices, indices and batches are read on access.

    Args:
        file: the file of images.
        rows: (images,), int64, on the CPU: which of the file's images, in this order; None: all.
        device: where the images are read to.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(self, file: ImageFile, rows: Tensor | None = None, device: torch.device | None = None) -> None:
        self.file = file
        self.rows = torch.arange(file.shape[0]) if rows is None else rows
        self.device = device or torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), *self.file.shape[1:]))

    def to(self, device: torch.device) -> Stored:
        """Return the same images, to be read to a device."""
        return Stored(self.file, self.rows, device)

    def select(self, indices: Tensor) -> Stored:
        """Return the images with these indices, in their order, without reading them."""
        return Stored(self.file, self.rows[indices.cpu()], self.device)

    def joined(self, other: Stored) -> Stored:
        """Return these images followed by the others of the same file, without reading them."""
        if self.file != other.file:
            raise ValueError(f"images to join must lie in one file (got {self.file.path} and {other.file.path})")
        return Stored(self.file, torch.cat([self.rows, other.rows]), self.device)

    def __getitem__(self, indices: slice | Tensor) -> Tensor:
        rows = self.rows[indices.cpu() if isinstance(indices, Tensor) else indices]
        read = self.file.read(rows.numpy(), pinned=self.device.type == "cuda")
        return read.to(self.device, non_blocking=True)

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        """Read the images with these indices."""
        if dim != 0:
            raise ValueError(f"images are chosen along the first dimension (got {dim})")
        return self[indices]

    def batches(self, parts: Iterable[Tensor | slice]) -> Iterator[Tensor]:
        """Yield the images of each part in turn, prefetched by threads."""
        waiting: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(READERS, thread_name_prefix="images") as pool:
            for part in parts:
                waiting.append(pool.submit(self.__getitem__, part))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images in batches of a size, prefetched."""
        return self.batches(slice(start, start + size) for start in range(0, len(self), size))


Images = Tensor | Stored
"""Images of bytes, (count, channels, height, width): in memory, or in a file."""


def find(path: Path) -> ImageFile | None:
    """Return the file of images at a path; None where it is missing or truncated."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        entry = header[TENSOR]
        count, channels, height, width = entry["shape"]
        end = 8 + length + entry["data_offsets"][1]
        if entry["dtype"] != "U8" or path.stat().st_size != end:
            return None
        shape = count, channels, height, width
        return ImageFile(path, shape, 8 + length + entry["data_offsets"][0], Handle(path))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        return None


def check_disk(path: Path, shape: Shape) -> None:
    """Refuse a file of images that does not fit on its disk.

    Raises:
        DataError: the message names the bytes needed and the bytes free.
    """
    needed = int(np.prod(shape)) + ROOM
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        count, channels, height, width = shape
        raise DataError(
            f"{count:,} images of {channels}x{height}x{width} do not fit into memory, and need {needed / 1e9:.1f} GB "
            f"of disk in {path.parent}",
            got=f"{free / 1e9:.1f} GB free",
            remedy="free space, name another cache with KDSEARCH_CACHE_DIR, or set a smaller image_size under [data]",
        )


def write(path: Path, shape: Shape, images: Callable[[], Iterator[Bytes]], metadata: dict[str, str]) -> ImageFile:
    """Write images one by one to a safetensors file, atomically.

    Args:
        path, shape: of the file.
        images: yields each of them, (channels, height, width), in order.
        metadata: for the file's header, to which the digest of `files.save_tensors` is added.

    Raises:
        KdsearchError: the file cannot be written.
    """

    def save(beside: Path) -> None:
        with beside.open("wb") as file:
            digest = files.blank_digest(TENSOR, torch.uint8, shape)
            file.write(_header(shape, metadata | {files.DIGEST: digest.hexdigest()}))  # as long as it will be
            for image in images():
                plain = np.ascontiguousarray(image)
                digest.update(plain.data)
                file.write(plain.data)
            file.seek(0)
            file.write(_header(shape, metadata | {files.DIGEST: digest.hexdigest()}))

    files.write_whole(path, save)
    written = find(path)
    assert written is not None
    return written


def _header(shape: Shape, metadata: dict[str, str]) -> bytes:
    """Return a safetensors file's length and header for one tensor of bytes, padded so that the data are aligned."""
    entry = {"dtype": "U8", "shape": list(shape), "data_offsets": [0, int(np.prod(shape))]}
    text = json.dumps({"__metadata__": metadata, TENSOR: entry}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
