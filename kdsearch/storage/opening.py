"""Open Optuna storages by URL and studies by name; works without torch."""

from __future__ import annotations

import random
import re
import sqlite3
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsearch.errors import StorageError
from kdsearch.records import StudyAttr
from kdsearch.storage.masking import JOURNAL, first_line, hidden, is_torn, masked, trouble
from kdsearch.system import mounts

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.trial import FrozenTrial
    from sqlalchemy import URL, Engine

DEFAULT_STORAGE = "sqlite:///kdsearch.db"
SQLITE_TIMEOUT_SECONDS = 60
FOLD_TIMEOUT_SECONDS = 1
TABLE_TRIES = 20
SERVER_TIMEOUT_SECONDS = 5
FORMS = "sqlite:///FILE.db, postgresql://USER:PASSWORD@HOST/DB, journal:PATH or grpc://HOST:PORT"
MADE_MEANWHILE = re.compile("already exists|unique constraint|database is locked", re.IGNORECASE)


def open_storage(url: str, *, log: bool = True, make: bool = True) -> BaseStorage:
    """Open an Optuna storage, creating missing tables.

    Args:
        url: any URL of Optuna's RDBStorage (`sqlite:///x.db`, `postgresql://...`), `journal:PATH`, or `grpc://HOST:PORT`
            of a server of `optuna.storages.run_grpc_proxy_server`.
        log: whether sqlite uses a write-ahead log; False for reading, which keeps a folded file a single one that
            can be read anywhere.
        make: whether a missing file is made; False for commands that need a study in it.

    Raises:
        StorageError: the URL is malformed, or the storage cannot be reached or is something else.
    """
    import optuna
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        path = None if make else file_of(url)
        if path is not None and not path.exists():
            raise StorageError(
                "the storage must exist: there is no such file",
                got=masked(url),
                remedy="check --storage, or run `kdsearch optimize` first",
            )
        if url.startswith(JOURNAL):
            from kdsearch.storage.journal import open_journal

            return open_journal(Path(url.removeprefix(JOURNAL)))
        if url.startswith("grpc:"):
            return _proxy(url)
        _check(make_url(url))
        return _sqlite(url, log=log) if url.startswith("sqlite") else _with_tables(url, optuna.storages.RDBStorage)
    except (SQLAlchemyError, OSError, ValueError, ImportError, RuntimeError, AssertionError) as error:
        reason = trouble(error) or first_line(str(error)) or type(error).__name__
        raise StorageError(
            f"the storage must be reachable: {hidden(reason, url)}",
            got=masked(url),
            remedy=f"check --storage ({FORMS})",
        ) from None


def _check(parsed: URL) -> None:
    if is_torn(parsed):  # part of the password would go to a name server and into error messages
        raise ValueError("a password must be percent-encoded: @ as %40, / as %2F, : as %3A")
    in_memory = not parsed.database or ":memory:" in parsed.database or parsed.query.get("mode") == "memory"
    if parsed.drivername.startswith("sqlite") and in_memory:  # each connection would have a database of its own
        raise ValueError("a database in memory cannot be shared and ends with the command: name a file")


def _with_tables(url: str, made: Callable[..., RDBStorage], **engine: Any) -> RDBStorage:
    """Return Optuna's relational storage with missing tables made, even if other processes make them meanwhile."""
    from sqlalchemy.exc import DBAPIError

    template = url.replace("{", "{{").replace("}", "}}")  # Optuna formats the URL
    for wait in range(TABLE_TRIES):
        try:
            return made(template, engine_kwargs=dict(engine))
        except DBAPIError as error:
            if wait == TABLE_TRIES - 1 or not MADE_MEANWHILE.search(str(error.orig)):
                raise
        time.sleep(0.1 * (wait + random.random()))
    raise AssertionError("the last try returns or raises")


def _sqlite(url: str, *, log: bool) -> BaseStorage:
    """Return a sqlite storage with a write-ahead log: one writer and any number of readers do not block each other.

    A killed process loses nothing that it had committed. A machine that loses power may lose its last seconds, but
    the file stays sound: `synchronous=NORMAL` flushes the log at checkpoints only, at a third of the cost of `FULL`.
    """
    from sqlalchemy import event

    from kdsearch.storage.sqlite import SqliteStorage

    path = file_of(url)
    if path is not None:
        _check_file(path)
    backend = _with_tables(url, SqliteStorage, connect_args={"timeout": SQLITE_TIMEOUT_SECONDS})
    if log:
        event.listen(backend.engine, "connect", _use_log)
        backend.engine.dispose()  # reconnect, with the log
    return backend


def warning(url: str) -> str | None:
    """Return a warning for a sqlite file on a network file system, where its locks are unreliable; else None."""
    path = file_of(url) if url.startswith("sqlite") else None
    kind = mounts.shared_kind(path) if path else None
    if kind is None:
        return None
    return (
        f"{masked(url)} lies on a network file system ({kind}), where sqlite may lose trials or stop "
        "(sqlite.org/faq.html, question 5): use a local disk, journal:PATH, or postgresql:// for several machines"
    )


def _check_file(path: Path) -> None:
    """Refuse, before anything is made, files for which sqlite's or Optuna's own errors would be unspecific.

    Optuna's tables would be added to another program's file.
    """
    if not path.exists():
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent}")
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=SQLITE_TIMEOUT_SECONDS)
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise ValueError(str(error)) from None
    finally:
        connection.close()
    if tables and not {"studies", "version_info"} & tables:
        few = ", ".join(sorted(tables)[:3]) + (", ..." if len(tables) > 3 else "")
        raise ValueError(f"{path.name} is a database of something else than Optuna (its tables: {few})")


def _use_log(connection: Any, record: object) -> None:
    """Switch a connection's file to a write-ahead log; the file stores the setting, so one success is enough."""
    with suppress(sqlite3.OperationalError):  # another process holds the file, or it is read-only
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def fold(backend: BaseStorage) -> None:
    """Checkpoint sqlite's write-ahead log, so that a single file holds everything and can be copied.

    Safe at any time: while others use the file, as much is folded as they allow and the log stays; other storages are
    left alone. The last process to end leaves one file. Later reads through this storage, as for a report, do not begin
    a new log; `open_storage` does.
    """
    from sqlalchemy import event

    engine = _engine(backend)
    if engine is None or engine.dialect.name != "sqlite":
        return
    backend.remove_session()
    if event.contains(engine, "connect", _use_log):
        event.remove(engine, "connect", _use_log)
    engine.dispose()  # our own idle connections would keep the log
    with suppress(sqlite3.Error), engine.connect() as pooled:
        connection: Any = pooled.connection.dbapi_connection
        connection.execute(f"PRAGMA busy_timeout={1000 * FOLD_TIMEOUT_SECONDS}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()  # refused while another process has the file open
    engine.dispose()


def _engine(backend: Any) -> Engine | None:
    """Return the engine of a relational storage, whatever wraps it."""
    found: Engine | None = None
    while found is None and backend is not None:
        found = getattr(backend, "engine", None)
        backend = getattr(backend, "_backend", None) or getattr(backend, "backend", None)
    return found


def _proxy(url: str) -> BaseStorage:
    """Return a client of Optuna's gRPC storage proxy."""
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    if not parsed.host or parsed.port is None or parsed.database or parsed.query:
        raise ValueError("it must be grpc://HOST:PORT and no more")
    if parsed.username or parsed.password:
        raise ValueError("a gRPC proxy has no users and no passwords: it must be grpc://HOST:PORT")
    try:
        import grpc  # noqa: F401 -- Optuna imports it late, with an error about its own internals
    except ImportError:
        raise ImportError("grpcio is missing: pip install 'kdsearch[grpc]'") from None
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import GrpcStorageProxy

    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        backend = GrpcStorageProxy(host=host, port=parsed.port)
    try:
        backend.wait_server_ready(timeout=SERVER_TIMEOUT_SECONDS)
    except ConnectionError:
        backend.close()
        raise ConnectionError(f"no gRPC proxy answered in {SERVER_TIMEOUT_SECONDS} s") from None
    return backend


def file_of(url: str) -> Path | None:
    """Return the file of a sqlite or journal storage, beside which other files of its studies are kept; else None."""
    if url.startswith(JOURNAL):
        return Path(url.removeprefix(JOURNAL))
    if not url.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    found = make_url(url).database
    return None if not found or found == ":memory:" or found.startswith("file:") else Path(found)


def study_names(storage: BaseStorage, *, searches: bool = False) -> list[str]:
    """Return the sorted names of all studies in a storage; with `searches`, without those of the slides' rows."""
    studies = storage.get_all_studies()
    return sorted(study.study_name for study in studies if not (searches and StudyAttr.KIND in study.user_attrs))


def load_study(storage: BaseStorage, name: str) -> Study:
    """Load the study of that name, without a sampler of ours.

    Raises:
        StorageError: there is none.
    """
    import optuna

    known = study_names(storage)
    if name not in known:
        there = ", ".join(known) or "none yet"
        raise StorageError(
            "the study must exist in this storage",
            got=name,
            remedy=f"choose one with --name (studies there: {there}) or run `kdsearch optimize` first",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.load_study(study_name=name, storage=storage)


def load_trial(study: Study, number: int) -> FrozenTrial:
    """Load the trial of that number.

    Raises:
        StorageError: there is none.
    """
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        held = f"trials 0 to {len(trials) - 1}" if trials else "no trials"
        rule = f"--trial must be in the study, which holds {held}"
        raise StorageError(rule, got=number, remedy="`kdsearch status` lists the front")
    return trials[number]
