"""The live view of a study, refreshed between trials by one process at a time; its failures never end a study."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import optuna
from optuna import Study

from kdsearch.records import Progress
from kdsearch.search.workers import slots
from kdsearch.system import signals

EVERY = 10.0  # seconds between two refreshes
SHARE = 0.01  # maximum share of the time for refreshing: a slow storage or a long study is refreshed more rarely
LONGEST = 600.0  # seconds between two attempts while the storage fails
MISSED = 3  # looks at an unchanged lease, after which another process takes it
LEASE = "kdsearch:live"

Publish = Callable[[Study, bool], object]  # writes a study's view; the flag says whether its run is over


class Lease:
    """The lease of the view, held by one of all processes: a name and a counter in the study, independent of clocks.

    A process takes the lease if it is free, if its holder died on this machine, or if the holder's counter is unchanged
    over several of its own looks, because the holder is in a long trial. Two processes may take it at the same moment;
    the storage keeps the later one, and the other notices at its next look. Until then both write, which is harmless:
    each part of the view is one attribute, replaced as a whole.
    """

    def __init__(self, study: Study, missed: int = MISSED) -> None:
        self._study, self._missed = study, missed
        self._name = uuid.uuid4().hex
        self._count = 0
        self._seen: tuple[object, int] = (None, 0)

    def mine(self) -> bool:
        """Return whether this process holds the lease now; it is read, and renewed or taken if possible."""
        held = self._read()
        if held.get("name") not in (None, self._name) and not self._is_left(held):
            return False
        self._count += 1
        self._write({"name": self._name, "count": self._count, "worker": slots.myself()})
        return bool(self._read().get("name") == self._name)

    def release(self) -> None:
        """Release the lease, so that another process can take it at once."""
        if self._read().get("name") == self._name:
            self._write(None)

    def _is_left(self, held: dict[str, Any]) -> bool:
        sign = held.get("name"), held.get("count")
        self._seen = (sign, self._seen[1] + 1 if sign == self._seen[0] else 0)
        return slots.is_gone(held.get("worker")) or self._seen[1] >= self._missed

    def _read(self) -> dict[str, Any]:
        found = self._study._storage.get_study_system_attrs(self._study._study_id).get(LEASE)
        return found if isinstance(found, dict) else {}

    def _write(self, value: dict[str, Any] | None) -> None:
        self._study._storage.set_study_system_attr(self._study._study_id, LEASE, value)


class Live:
    """Refreshes a study's view when trials have ended, within a limit on the frequency; warns once if that fails."""

    def __init__(self, study: Study, publish: Publish, progress: Progress, every: float = EVERY) -> None:
        self._study, self._publish, self._progress, self._every = study, publish, progress, every
        self._lease: Lease | None = None
        self._due = 0.0
        self._shown = -1  # ended trials in the view
        self._failures = 0

    def look(self) -> None:
        """Refresh the view if it is due and this process holds the lease; storage errors are never raised."""
        if time.monotonic() >= self._due:
            self._try(self._refresh)

    def end(self) -> None:
        """Write the view a last time and release the lease; if a signal asked the process to end, only release it."""
        if signals.received() is None:
            self._try(lambda lease: self._refresh(lease, over=True))
        self._try(Lease.release)

    def _refresh(self, lease: Lease, *, over: bool = False) -> None:
        if not lease.mine():
            return
        trials = self._own.get_trials(deepcopy=False)
        ended = sum(trial.state.is_finished() for trial in trials)
        if over or ended != self._shown:
            self._publish(self._own, over)
            self._shown = ended

    @cached_property
    def _own(self) -> Study:
        """Return the study without retries of its storage: while the storage is away, the view is simply late."""
        backend = getattr(self._study._storage, "backend", self._study._storage)
        return optuna.load_study(study_name=self._study.study_name, storage=backend)

    def _try(self, act: Callable[[Lease], None]) -> None:
        begin = time.monotonic()
        try:
            if self._lease is None:
                self._lease = Lease(self._own)
            act(self._lease)
        except Exception as error:
            self._failures += 1
            if self._failures == 1:
                said = str(error).splitlines()[:1] or [type(error).__name__]
                self._progress.warning(f"the live view in optuna-dashboard is late, the study goes on: {said[0]}")
            self._due = time.monotonic() + min(LONGEST, self._every * 2**self._failures)
        else:
            now = time.monotonic()
            self._due = now + max(self._every, (now - begin) / SHARE)


@contextmanager
def kept(study: Study, publish: Publish | None, progress: Progress) -> Iterator[Callable[[], None]]:
    """Run the body with a study's view refreshed at the start, at each call of the yielded function, and at the end."""
    if publish is None:
        yield lambda: None
        return
    live = Live(study, publish, progress)
    live.look()
    try:
        yield live.look
    finally:
        live.end()
