"""One timing at a time on a device, and no training of ours beside it: readers and a writer, on two locked files."""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from kdsearch.system import machine

try:
    import fcntl
except ImportError:  # Windows: several workers of one machine are not kept apart there
    fcntl = None  # type: ignore[assignment]

EVERY = 0.02  # seconds between two looks, from the steps of a training, whether somebody wants to time


def _name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    return str(torch.cuda.get_device_properties(device).uuid)  # the index depends on CUDA_VISIBLE_DEVICES


class Gate:
    """What a process does on a device, so that its timings and others' trainings do not meet.

    Who trains holds `busy` shared. Who times takes `turn` for itself, which is the sign to the others, and then `busy`
    for itself, once all have paused. Both are locks of the kernel: a process that dies holds nothing.

    Args:
        device: the locks are this device's, for all studies of this user on this machine.
        folder: of the locks; None: one in the system's folder for temporary files, for a cache may be a network's.

    Attributes:
        paused: seconds that this process has waited for others' timings.
    """

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.paused = 0.0
        self._device = device
        self._next = 0.0
        self._files: dict[str, int] = {}
        if fcntl is None:
            return
        owner = getattr(os, "getuid", lambda: 0)()
        folder = folder or Path(tempfile.gettempdir()) / f"kdsearch-{owner}"
        with suppress(OSError):  # no such folder can be had: then workers are not kept apart
            folder.mkdir(mode=0o700, exist_ok=True)
            for kind in ("turn", "busy"):
                file = os.open(folder / f"{_name(device)}.{kind}", os.O_RDWR | os.O_CREAT, 0o600)
                weakref.finalize(self, os.close, file)
                self._files[kind] = file

    def _lock(self, kind: str, how: str) -> None:
        if kind in self._files:
            fcntl.flock(self._files[kind], getattr(fcntl, f"LOCK_{how}"))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Runs its body, which calls `step` now and then, while nobody times."""
        self._enter()
        try:
            yield
        finally:
            self._lock("busy", "UN")

    def _enter(self) -> None:
        begin = time.monotonic()
        self._lock("turn", "SH")  # waits for whoever times
        self._lock("busy", "SH")
        self._lock("turn", "UN")
        self.paused += time.monotonic() - begin

    def step(self) -> None:
        """Lets others time, if they want to; between two batches."""
        now = time.monotonic()
        if now < self._next or "busy" not in self._files:
            return
        self._next = now + EVERY
        try:
            fcntl.flock(self._files["turn"], fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            machine.synchronize(self._device)  # what was sent to a GPU still runs there
            self._lock("busy", "UN")
            self._enter()
        else:
            self._lock("turn", "UN")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Runs its body, a timing, while nobody else of us times or trains on the device."""
        self._lock("turn", "EX")
        try:
            self._lock("busy", "EX")
            yield
        finally:
            self._lock("busy", "UN")
            self._lock("turn", "UN")
