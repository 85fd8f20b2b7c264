"""A sqlite storage in which a trial changes its state atomically."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, event


class SqliteStorage(RDBStorage):
    """Optuna's sqlite storage, with the database locked from reading a trial's state until it is written.

    sqlite has no row locks, and Python's driver begins a transaction at the first write: otherwise two processes can
    both read WAITING and both set RUNNING.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._own = threading.local()
        super().__init__(*args, **options)
        event.listen(self.engine, "begin", self._begin)

    def _begin(self, connection: Connection) -> None:
        if getattr(self._own, "writes", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._own.writes = True
        try:
            yield
        finally:
            self._own.writes = False

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set a trial's state and values as Optuna does, under one lock."""
        with self._writing():
            return super().set_trial_state_values(trial_id, state, values)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        with self._writing():
            return super()._create_new_trial(study_id, template_trial)
