"""A storage that waits where its server is away for a while."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from kdsearch.system import signals

LONGEST = 600.0  # seconds that a server may be away
LAST = 4.0  # seconds that it may be once the process was told to end
FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0


def passes(error: BaseException) -> bool:
    """Whether an error says that the server cannot be reached now, or is busy; a full disk is neither."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, DBAPIError):
        if isinstance(cause.orig, sqlite3.Error):
            return "locked" in str(cause.orig)
        return cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)
    code = getattr(cause, "code", None)  # grpc.RpcError: the package is not imported to ask
    return callable(code) and getattr(code(), "name", "") in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


class _Asks(BaseStorage):
    """Asks another storage again while `passes` says so."""

    def __init__(self, backend: BaseStorage, told: Callable[[str], None]) -> None:
        self.backend = optuna.storages.get_storage(backend)
        self._told = told

    def ask(self, name: str, *args: Any, **options: Any) -> Any:
        """Calls a method of the storage until it answers.

        Raises:
            StorageInternalError, sqlalchemy.exc.SQLAlchemyError: the server stayed away, or it is another error.
            Stopped: a signal came, whatever a library made of it.
        """
        since, wait, handled = time.monotonic(), FIRST_WAIT, sys.exception()
        while True:
            again = wait > FIRST_WAIT
            try:
                return getattr(self.backend, name)(*args, **options)
            except UpdateFinishedTrialError:
                if again and name == "set_trial_state_values":
                    return True  # it was done before, and the answer was lost
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


def _asking(name: str) -> Callable[..., Any]:
    def call(self: _Asks, *args: Any, **options: Any) -> Any:
        return self.ask(name, *args, **options)

    return call


def patient(backend: BaseStorage, told: Callable[[str], None] = lambda text: None) -> BaseStorage:
    """A storage that does what `backend` does, and waits up to ten minutes where its server is away.

    Args:
        backend: any Optuna storage.
        told: a line when a wait begins.
    """
    names = [name for name, value in vars(BaseStorage).items() if not name.startswith("_") and callable(value)]
    made: type[_Asks] = type("PatientStorage", (_Asks,), {name: _asking(name) for name in names})
    made.__abstractmethods__ = frozenset()  # all of them are there
    return made(backend, told)
