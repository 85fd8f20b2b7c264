"""A lock that keeps timings on a device apart from other timings and from training, using two locked files."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from kdsearch.system import machine

EVERY = 0.02  # seconds between two checks, during training, for a process that wants to time


class Gate:
    """A readers-writer lock on a device between this user's processes: trainings share it, a timing has it alone.

    A process that trains holds `busy` shared. One that times takes `turn` exclusively, which asks the others to pause,
    and then `busy` exclusively once all have paused. Both are kernel locks, so a process that dies releases them.

    Args:
        device: the device of the locks, for all studies of this user on this machine.
        folder: of the lock files; None: one in the system's temporary folder, as the cache may be on a network.

    Attributes:
        paused: seconds that this process has waited for the timings of others.
    """

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.paused = 0.0
        self._device = device
        self._next = 0.0
        self._shares = False  # whether this process is within `working`
        self._files: dict[str, int] = {}
        folder = folder or Path(tempfile.gettempdir()) / f"kdsearch-{os.getuid()}"
        # the index of a GPU depends on CUDA_VISIBLE_DEVICES
        name = torch.cuda.get_device_properties(device).uuid if device.type == "cuda" else device.type
        with suppress(OSError):  # without a writable folder workers are not kept apart
            folder.mkdir(mode=0o700, exist_ok=True)
            for kind in ("turn", "busy"):
                file = os.open(folder / f"{name}.{kind}", os.O_RDWR | os.O_CREAT, 0o600)
                weakref.finalize(self, os.close, file)
                self._files[kind] = file

    def _lock(self, kind: str, how: str) -> None:
        if kind in self._files:
            fcntl.flock(self._files[kind], getattr(fcntl, f"LOCK_{how}"))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run the body, which calls `step` regularly, while no process times; within another one, just the body."""
        if self._shares:
            yield
            return
        self._enter()
        self._shares = True
        try:
            yield
        finally:
            self._shares = False
            self._lock("busy", "UN")

    def _enter(self) -> None:
        begin = time.monotonic()
        self._lock("turn", "SH")  # waits for a process that times
        self._lock("busy", "SH")
        self._lock("turn", "UN")
        self.paused += time.monotonic() - begin

    def step(self) -> None:
        """Pause for a process that waits to time; called between two batches, and without effect outside `working`.

        Outside it nothing would release the lock that is taken after a pause.
        """
        now = time.monotonic()
        if not self._shares or now < self._next or "busy" not in self._files:
            return
        self._next = now + EVERY
        try:
            fcntl.flock(self._files["turn"], fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            machine.synchronize(self._device)  # queued work may still run on a GPU
            self._lock("busy", "UN")
            self._enter()
        else:
            self._lock("turn", "UN")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run the body, a timing, while no other process of this user times or trains on the device."""
        self._lock("turn", "EX")
        try:
            self._lock("busy", "EX")
            yield
        finally:
            self._lock("busy", "UN")
            self._lock("turn", "UN")
