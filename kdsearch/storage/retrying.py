"""A storage that retries while its server is unreachable."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable
from functools import partialmethod
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from kdsearch.system import signals

LONGEST = 600.0  # seconds to wait for a server
LAST = 4.0  # the same after a signal has asked the process to end
FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0


def passes(error: BaseException) -> bool:
    """Return whether an error is temporary: the server is unreachable or busy; a full disk is not."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, DBAPIError):
        if isinstance(cause.orig, sqlite3.Error):
            return "locked" in str(cause.orig)
        return cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)
    code = getattr(cause, "code", None)  # grpc.RpcError, without importing grpc
    return callable(code) and getattr(code(), "name", "") in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


class _PatientStorage(BaseStorage):
    """Retries calls of another storage while `passes` says that the error is temporary."""

    def __init__(self, backend: BaseStorage, told: Callable[[str], None]) -> None:
        self.backend = optuna.storages.get_storage(backend)
        self._told = told

    def ask(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a method of the storage until it answers.

        Raises:
            StorageInternalError, sqlalchemy.exc.SQLAlchemyError: the server stayed away, or the error is not temporary.
            Stopped: a signal came, even if a library replaced it by an error of its own.
        """
        since, wait, handled = time.monotonic(), FIRST_WAIT, sys.exception()
        while True:
            again = wait > FIRST_WAIT
            try:
                return getattr(self.backend, name)(*args, **options)
            except UpdateFinishedTrialError:
                if again and name == "set_trial_state_values":
                    return True  # done before, but the answer was lost
                raise
            except Exception as error:
                if signals.replaced(error, handled):
                    raise signals.Stopped from error
                longest = LONGEST if signals.received() is None else LAST
                if not passes(error) or time.monotonic() - since > longest:
                    raise
                if not again:
                    self._told("the storage does not answer; waiting for it")
            signals.pause(wait)
            wait = min(2 * wait, LONGEST_WAIT)


def patient(backend: BaseStorage, told: Callable[[str], None] = lambda text: None) -> BaseStorage:
    """Return a storage that acts as `backend` and retries for up to ten minutes while its server is unreachable.

    `told` gets a line when a wait begins.
    """
    names = [name for name, value in vars(BaseStorage).items() if not name.startswith("_") and callable(value)]
    asks = {name: partialmethod(_PatientStorage.ask, name) for name in names}
    made: type[_PatientStorage] = type("PatientStorage", (_PatientStorage,), asks)
    return made(backend, told)
