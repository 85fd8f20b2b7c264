"""SIGTERM and Ctrl-C: the first signal ends the work in order, a second Ctrl-C ends it at once."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

LIMIT = 9.0  # seconds from a signal to the forced end of the process: launchers kill after 10 or more
NAP = 0.1  # seconds between two checks for a signal
AGAIN = 0.5  # seconds between two checks whether a `Stopped` was lost
QUERIES = logging.getLogger("sqlalchemy")


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; it unwinds the main thread as any Ctrl-C does."""

    def __init__(self) -> None:
        super().__init__()
        _state.raised = weakref.ref(self)


@dataclass
class _Signals:
    """State of the signals in this process; global, because a handler takes no arguments."""

    received: int | None = None
    shields: int = 0
    pending: bool = False
    raised: weakref.ref[Stopped] | None = None
    over: bool = False  # the body of `handled` has ended
    at_once: Callable[[], object] = lambda: None


_state = _Signals()


def _is_lost() -> bool:
    """Return whether `Stopped` was raised where Python or a library discards exceptions, as in a weakref's callback.

    While it unwinds the main thread, or clean-up runs because of it, the exception object lives.
    """
    raised = _state.raised
    return raised is not None and raised() is None


def _handle(number: int, _: FrameType | None) -> None:
    if _state.received is not None and not _is_lost():
        return  # launchers signal the whole job, and the supervisor its workers: ignore a second SIGTERM
    if _state.received is None:
        _state.received = number
    QUERIES.setLevel(logging.CRITICAL)  # a query that is cut short here would log a traceback
    if _state.over:
        return
    if _state.shields:
        _state.raised, _state.pending = None, True
        return
    raise Stopped


@contextmanager
def handled(limit: float = LIMIT) -> Iterator[None]:
    """Run the body with both signals raising `Stopped`; end the process at most `limit` seconds after the first one."""
    global _state
    _state = _Signals()
    heard, told = os.pipe()
    os.set_blocking(told, False)
    before = {number: signal.signal(number, _handle) for number in (signal.SIGTERM, signal.SIGINT)}
    other, level = signal.set_wakeup_fd(told, warn_on_full_buffer=False), QUERIES.level
    shown, sys.unraisablehook = sys.unraisablehook, _silent(sys.unraisablehook)
    watch = threading.Thread(target=_watch, args=(heard, limit), daemon=True)
    watch.start()
    try:
        yield
    finally:
        _state.over = True
        signal.set_wakeup_fd(other)
        os.close(told)
        watch.join()  # before the handlers are put back: it may just be sending a signal again
        os.close(heard)
        for number, handler in before.items():
            signal.signal(number, handler)
        QUERIES.setLevel(level)
        sys.unraisablehook = shown


def _silent(shown: Callable[[sys.UnraisableHookArgs], object]) -> Callable[[sys.UnraisableHookArgs], None]:
    """Return a hook without the traceback of a `Stopped` that Python discards: it is raised again."""

    def show(discarded: sys.UnraisableHookArgs) -> None:
        if discarded.exc_type is not Stopped:
            shown(discarded)

    return show


def _watch(heard: int, limit: float) -> None:
    """Send a signal again if its exception was lost, and end the process if the main thread does not.

    While the main thread waits in a library, no Python signal handler runs.
    """
    first, end = 0, math.inf
    while True:
        left = min(AGAIN, max(0.0, end - time.monotonic())) if first else None
        if not select.select([heard], [], [], left)[0]:
            if time.monotonic() >= end:
                _end(first)
            if _is_lost():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            continue
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
    """Run the body; call `action` before the process is ended by a second Ctrl-C or by the time limit."""
    before, _state.at_once = _state.at_once, action
    try:
        yield
    finally:
        _state.at_once = before


def replaced(error: BaseException | None, handled: BaseException | None) -> bool:
    """Return whether a library's own error replaced `Stopped`: it could not close a query that a signal cut short.

    Args:
        error: the error raised.
        handled: the error that was being handled when the library was called; earlier ones in the chain are ignored.
    """
    while error is not None and error is not handled:
        if isinstance(error, Stopped):
            return True
        error = error.__context__
    return False


def received() -> int | None:
    """Return the first signal that arrived, or None."""
    return _state.received


def leave(code: object) -> None:
    """End the process if a signal has asked for it, without the seconds that an orderly shutdown of libraries takes."""
    if _state.received is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


@contextmanager
def shield() -> Iterator[None]:
    """Delay a signal until the body has ended: for a write together with its record."""
    _state.shields += 1
    try:
        yield
    finally:
        _state.shields -= 1
        if not _state.shields:
            check()


def check() -> None:
    """Raise `Stopped`, in the main thread, if a shield delayed a signal."""
    if _state.pending and threading.current_thread() is threading.main_thread():
        _state.pending = False
        raise Stopped


def pause(seconds: float) -> None:
    """Sleep, shielded or not; a signal that arrives meanwhile raises `Stopped`."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(NAP, left))
        check()


@contextmanager
def tied_to(parent: int | None) -> Iterator[None]:
    """Run the body while a thread watches the parent process and sends SIGTERM if it is gone; None: no watch."""
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


def end_with_parent() -> None:
    """End this process of a `multiprocessing` pool when its parent is gone; else a killed parent leaves it waiting."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
