"""SIGTERM and Ctrl-C: the first one ends the work in order, a second Ctrl-C at once."""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

LIMIT = 9.0  # seconds after a signal, when a process ends however far it is: launchers kill after 10 or more
NAP = 0.1  # seconds between two looks for a signal
QUERIES = logging.getLogger("sqlalchemy")


class Stopped(KeyboardInterrupt):
    """The process was told to end; what runs in the main thread is unwound by it, as by any Ctrl-C."""


class _Signals:
    """What has arrived in this process; a handler cannot be given anything."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.shields = 0
        self.pending = False
        self.at_once: Callable[[], object] = lambda: None


_state = _Signals()


def _handle(number: int, _: FrameType | None) -> None:
    if _state.received is not None:
        return  # a launcher signals the whole job, and the supervisor its workers: a second SIGTERM is no news
    _state.received = number
    QUERIES.setLevel(logging.CRITICAL)  # one that is cut short here logs a traceback
    if _state.shields:
        _state.pending = True
        return
    raise Stopped


@contextmanager
def handled(limit: float = LIMIT) -> Iterator[None]:
    """Runs its body with both signals raising `Stopped` in it; the process ends at the latest `limit` seconds after.

    Args:
        limit: seconds from the first signal to the end of the process, should the body still run.
    """
    global _state
    _state = _Signals()
    heard, told = os.pipe()
    os.set_blocking(told, False)
    before = {number: signal.signal(number, _handle) for number in (signal.SIGTERM, signal.SIGINT)}
    other, level = signal.set_wakeup_fd(told, warn_on_full_buffer=False), QUERIES.level
    watch = threading.Thread(target=_watch, args=(heard, limit), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(other)
        QUERIES.setLevel(level)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(told)
        watch.join()
        os.close(heard)


def _watch(heard: int, limit: float) -> None:
    """Ends the process where the main thread does not: while that waits in a library, no handler of Python's runs."""
    first, end = 0, math.inf
    while True:
        left = None if not first else max(0.0, end - time.monotonic())
        if not select.select([heard], [], [], left)[0]:
            _end(first)
        came = os.read(heard, 16)
        if not came:
            return  # the body has ended
        for number in came:
            if first and number == signal.SIGINT:
                _end(number)
            if not first and number in (signal.SIGINT, signal.SIGTERM):
                first, end = number, time.monotonic() + limit


def _end(number: int) -> None:
    _state.at_once()
    os._exit(128 + number)


@contextmanager
def at_once(action: Callable[[], object]) -> Iterator[None]:
    """Runs its body; `action` is called before a second Ctrl-C, or tidying that takes too long, ends the process."""
    before, _state.at_once = _state.at_once, action
    try:
        yield
    finally:
        _state.at_once = before


def replaced(error: BaseException | None, handled: BaseException | None) -> bool:
    """Whether a library's own error took the place of `Stopped`: a query that it cut short could not be closed.

    Args:
        error: that came.
        handled: what was being handled when the library was called; what came before it is no news.
    """
    while error is not None and error is not handled:
        if isinstance(error, Stopped):
            return True
        error = error.__context__
    return False


def received() -> int | None:
    """The signal that arrived first, or None."""
    return _state.received


def leave(code: object) -> None:
    """Ends the process if a signal has asked for it: taking down the libraries in order would take more seconds."""
    if _state.received is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


@contextmanager
def shield() -> Iterator[None]:
    """Runs its body to its end before a signal that arrives in it is raised: for a write and the note of it."""
    _state.shields += 1
    try:
        yield
    finally:
        _state.shields -= 1
        if not _state.shields:
            check()


def check() -> None:
    """Raises what a shield kept back, in the main thread.

    Raises:
        Stopped: a signal arrived.
    """
    if _state.pending and threading.current_thread() is threading.main_thread():
        _state.pending = False
        raise Stopped


def pause(seconds: float) -> None:
    """Sleeps, shielded or not, until a signal arrives.

    Raises:
        Stopped: a signal arrived.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(NAP, left))
        check()


@contextmanager
def tied_to(parent: int | None) -> Iterator[None]:
    """Runs its body with a watch on the parent process: where it is gone, this one gets SIGTERM; None: no watch."""
    over = threading.Event()

    def watch() -> None:
        while os.getppid() == parent:
            if over.wait(1.0):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
