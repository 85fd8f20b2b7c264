from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
import weakref

import pytest
from helpers.processes import lives, until

from kdsearch.system import signals


@pytest.fixture(autouse=True)
def _unheard(monkeypatch):
    """A signal that a test raised is forgotten after it: it would end this process at its next command."""
    monkeypatch.setattr(signals, "_state", signals._Signals())


STUCK = """
import sqlite3, sys
from kdsearch.system import signals

other = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
with signals.handled(float(sys.argv[2])), signals.shield():  # a signal before the wait does not keep it from it
    print("here", flush=True)
    other.execute("BEGIN IMMEDIATE")  # waits in C for a lock that this test holds
"""


def stuck(path, limit):
    words = [sys.executable, "-c", STUCK, str(path), str(limit)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "here\n"
    return process


@pytest.fixture
def locked(tmp_path):
    import sqlite3

    path = tmp_path / "locked.db"
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    yield path
    holder.close()


def test_a_second_ctrl_c_ends_a_process_that_waits_in_a_library(locked):
    process = stuck(locked, 50)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    process.stdout.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_that_waits_in_a_library_ends_at_the_limit(locked, number, code):
    process = stuck(locked, 0.3)
    process.send_signal(number)
    assert process.wait(timeout=5) == code
    process.stdout.close()


def test_a_second_sigterm_is_no_news(locked):
    process = stuck(locked, 1.5)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert process.poll() is None
    assert process.wait(timeout=5) == 143
    process.stdout.close()


def test_a_shield_keeps_a_signal_back_to_its_end():
    done = []

    def body():
        with signals.handled():
            with signals.shield():
                signal.raise_signal(signal.SIGTERM)
                done.append("written")
            done.append("not reached")

    with pytest.raises(signals.Stopped):
        body()
    assert done == ["written"]
    assert signals.received() == signal.SIGTERM


def test_a_pause_ends_with_a_signal_though_shielded():
    def body():
        with signals.handled(), signals.shield():
            signal.raise_signal(signal.SIGINT)
            signals.pause(30)

    begin = time.monotonic()
    with pytest.raises(signals.Stopped):
        body()
    assert time.monotonic() - begin < 5


class _Dying:
    """Python discards what the callback of a weak reference to it raises."""


def test_a_signal_within_a_weakrefs_callback_is_not_lost(capsys):
    def body():
        dying = _Dying()
        seen = weakref.ref(dying, lambda _: signal.raise_signal(signal.SIGINT))
        with signals.handled():
            del dying
            done.append(seen())
            time.sleep(5)
            done.append("not reached")

    done, begin = [], time.monotonic()
    with pytest.raises(signals.Stopped):
        body()
    assert done == [None]
    assert time.monotonic() - begin < 4
    assert signals.received() == signal.SIGINT
    assert "Stopped" not in capsys.readouterr().err


@pytest.mark.parametrize("replaced", [False, True])
def test_clean_up_after_a_signal_is_not_interrupted_by_it(monkeypatch, replaced):
    def body():
        with signals.handled():
            try:
                signal.raise_signal(signal.SIGTERM)
            except signals.Stopped:
                time.sleep(0.5)
                if replaced:
                    raise OSError from None
                raise
            finally:
                time.sleep(0.5)
                done.append("handed back")

    done = []
    monkeypatch.setattr(signals, "AGAIN", 0.1)
    with pytest.raises(OSError if replaced else signals.Stopped):
        body()
    assert done == ["handed back"]


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with signals.handled():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_query_that_a_signal_cuts_short_logs_no_traceback():
    pool = logging.getLogger("sqlalchemy.pool.impl.NullPool")
    assert pool.isEnabledFor(logging.ERROR)
    with signals.handled():
        with pytest.raises(signals.Stopped):
            signal.raise_signal(signal.SIGTERM)
        assert not pool.isEnabledFor(logging.ERROR)
    assert pool.isEnabledFor(logging.ERROR)


POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from kdsearch.system import signals

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=signals.end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


def test_a_pools_process_ends_with_its_parent_even_if_that_is_killed(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    parent = subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not lives(worker), 10)
