"""Optuna storages by URL, and studies by name; nothing here needs torch."""

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
from urllib.parse import unquote, unquote_plus

from kdsearch.errors import StorageError
from kdsearch.records import StudyAttr
from kdsearch.system import mounts

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage, RDBStorage
    from optuna.trial import FrozenTrial
    from sqlalchemy import URL, Engine

DEFAULT_STORAGE = "sqlite:///kdsearch.db"
JOURNAL = "journal:"
GRPC = "grpc:"
SQLITE_TIMEOUT_SECONDS = 60
FOLD_TIMEOUT_SECONDS = 1
TABLE_TRIES = 20
SERVER_TIMEOUT_SECONDS = 5
FORMS = "sqlite:///FILE.db, postgresql://USER:PASSWORD@HOST/DB, journal:PATH or grpc://HOST:PORT"
SECRET = re.compile(r"pass(?!file)|pwd|secret|token|credential|odbc_connect", re.IGNORECASE)  # in a query's keys
MADE_MEANWHILE = re.compile("already exists|unique constraint|database is locked", re.IGNORECASE)
ANY_PASSWORD = re.compile(r"(://[^:/@\s]*:)\S*(@)")


def masked(url: str) -> str:
    """The URL with its password replaced by `***`, for anything that is printed, logged or written."""
    if url.startswith(JOURNAL):
        return JOURNAL + ANY_PASSWORD.sub(r"\1***\2", url.removeprefix(JOURNAL))  # a path may look like a URL
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "***"  # not a URL: it may hold a password anywhere
    if _is_torn(parsed):
        return ANY_PASSWORD.sub(r"\1***\2", url)
    secret = {key: "***" for key in parsed.query if SECRET.search(key)}
    return parsed.update_query_dict(secret).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def _is_torn(parsed: URL) -> bool:
    """Whether an @ of the password was taken for its end: then the rest of it stands in the host or the database."""
    return parsed.password is not None and "@" in f"{parsed.host or ''}{parsed.database or ''}"


def hidden(text: str, url: str | None = None) -> str:
    """A text without the password of a URL, however it is written, and without any other URL's.

    Args:
        text: of an error, or a word of a command line.
        url: of the storage; None: it is not known here.
    """
    if url is not None and url.strip():
        text = text.replace(url, masked(url))
        for password in sorted(_passwords(url), key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(password)}(?!\w)", "***", text)
    return ANY_PASSWORD.sub(r"\1***\2", text)


def _passwords(url: str) -> set[str]:
    """The secrets of a URL, as they are written there and as they are meant."""
    _, _, rest = url.partition("://")
    login, _, _ = rest.rpartition("@")
    found = {login.partition(":")[2]}
    found |= {value for key, _, value in re.findall(r"([^?&=]+)(=)([^&]*)", url) if SECRET.search(key)}
    return {form for each in found for form in (each, unquote(each), unquote_plus(each)) if form}


def trouble(error: BaseException, url: str | None = None) -> str | None:
    """What a storage that fails says, in one line without its password; None where it is no storage's error."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    inner = error
    while isinstance(inner, AssertionError | UnboundLocalError) and inner.__context__ is not None:
        inner = inner.__context__  # Optuna trips over itself where it cannot store that a trial failed
    if isinstance(inner, StorageInternalError) and inner.__cause__ is not None:
        inner = inner.__cause__  # what it says itself is the same whatever happened
    details = getattr(inner, "details", None)  # grpc.RpcError: the package is not imported to ask
    if callable(details) and callable(getattr(inner, "code", None)):
        return hidden(_line(str(details() or type(inner).__name__)), url)
    if not isinstance(inner, SQLAlchemyError | StorageInternalError | sqlite3.Error):
        return None
    return hidden(_line(str(getattr(inner, "orig", None) or inner)), url)


def _line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def open_storage(url: str, *, log: bool = True) -> BaseStorage:
    """Opens an Optuna storage, creating its tables where they are missing.

    Args:
        url: any URL of Optuna's RDBStorage (`sqlite:///x.db`, `postgresql://...`), `journal:PATH`, or `grpc://HOST:PORT`
            of a server of `optuna.storages.run_grpc_proxy_server`.
        log: whether sqlite is to have a write-ahead log; who reads says False, so that a folded file stays one that
            can be read anywhere.

    Raises:
        StorageError: the URL is malformed, or the storage cannot be reached or is something else.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if url.startswith(JOURNAL):
            from kdsearch.storage.journal import open_journal

            return open_journal(Path(url.removeprefix(JOURNAL)))
        if url.startswith(GRPC):
            return _proxy(url)
        _check_password(url)
        _check_kept(url)
        return _sqlite(url, log=log) if url.startswith("sqlite") else _with_tables(url, optuna.storages.RDBStorage)
    except (SQLAlchemyError, OSError, ValueError, ImportError, RuntimeError, AssertionError) as error:
        reason = trouble(error) or _line(str(error)) or type(error).__name__
        raise StorageError(
            f"the storage must be reachable: {hidden(reason, url)}",
            got=masked(url),
            remedy=f"check --storage ({FORMS})",
        ) from None


def _check_kept(url: str) -> None:
    """Refuse a database in memory: it would be gone with the command, and each connection would have its own.

    Raises:
        ValueError: it is one.
    """
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    if not parsed.drivername.startswith("sqlite"):
        return
    if not parsed.database or ":memory:" in parsed.database or parsed.query.get("mode") == "memory":
        raise ValueError("a database in memory cannot be shared and ends with the command: name a file")


def _check_password(url: str) -> None:
    """Refuses a URL that would send a part of the password to a name server, and write it into its errors.

    Raises:
        ValueError: an @ in the password is not encoded.
    """
    from sqlalchemy.engine import make_url

    if _is_torn(make_url(url)):
        raise ValueError("a password must be percent-encoded: @ as %40, / as %2F, : as %3A")


def _with_tables(url: str, made: Callable[..., RDBStorage], **engine: Any) -> RDBStorage:
    """Optuna's relational storage; missing tables are made, by others too that begin at the same time."""
    from sqlalchemy.exc import DBAPIError

    for wait in range(TABLE_TRIES):
        try:
            plain = url.replace("{", "{{").replace("}", "}}")  # Optuna takes the URL for a template
            return made(plain, engine_kwargs=dict(engine))
        except DBAPIError as error:
            if wait == TABLE_TRIES - 1 or not MADE_MEANWHILE.search(str(error.orig)):
                raise
        time.sleep(0.1 * (wait + random.random()))
    raise AssertionError("the last try returns or raises")


def _sqlite(url: str, *, log: bool) -> BaseStorage:
    """A file of sqlite with a write-ahead log, in which one writer and any number of readers do not wait for another.

    A killed process loses nothing that it had committed. A machine that loses power may lose its last seconds, and
    the file stays sound: `synchronous=NORMAL` writes the log through at checkpoints, and costs a third of `FULL`.
    """
    from sqlalchemy import event
    from sqlalchemy.engine import make_url

    from kdsearch.storage.sqlite import SqliteStorage

    path = make_url(url).database
    if path and path != ":memory:" and not path.startswith("file:"):
        _check_file(Path(path))
    backend = _with_tables(url, SqliteStorage, connect_args={"timeout": SQLITE_TIMEOUT_SECONDS})
    if not log:
        return backend
    event.listen(backend.engine, "connect", _use_log)
    backend.engine.dispose()  # connections are made anew, with the log
    return backend


def warning(url: str) -> str | None:
    """A line for a sqlite file on a network file system, whose locks sqlite cannot trust; None: no such thing."""
    from sqlalchemy.engine import make_url

    path = make_url(url).database if url.startswith("sqlite") else None
    kind = mounts.shared_kind(Path(path)) if path else None
    if kind is None:
        return None
    return (
        f"{masked(url)} lies on a network file system ({kind}), where sqlite may lose trials or stop "
        "(sqlite.org/faq.html, question 5): use a local disk, journal:PATH, or postgresql:// for several machines"
    )


def _check_file(path: Path) -> None:
    """Refuses, before anything is made, what sqlite or Optuna would call by a general name.

    Raises:
        ValueError: the file is of another program, so that Optuna's tables would be put in among its own.
        OSError: the folder is not there.
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
        raise ValueError(f"{path.name} is a database of something else than Optuna (its tables: {_few(tables)})")


def _few(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _use_log(connection: Any, record: object) -> None:
    """Turns a new connection's file to a write-ahead log: the file remembers, so it does not matter who succeeds."""
    with suppress(sqlite3.OperationalError):  # another process holds it just now, or it may only be read
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def fold(backend: BaseStorage) -> None:
    """Folds the write-ahead log of sqlite back, so that the one file holds everything and can be copied.

    Harmless at any time: where others still use the file, as much is folded as they allow and the log stays; on other
    storages nothing is done. The last process to end leaves one file. What this storage does after, such as reading
    for a report, does not begin a new log: `open_storage` does.
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
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()  # refused while anyone else has the file open
    engine.dispose()


def _engine(backend: Any) -> Engine | None:
    """The engine of a relational storage, whatever is wrapped around it."""
    while backend is not None:
        found: Engine | None = getattr(backend, "engine", None)
        if found is not None:
            return found
        backend = getattr(backend, "_backend", None) or getattr(backend, "backend", None)
    return None


def _proxy(url: str) -> BaseStorage:
    """A client of Optuna's gRPC storage proxy.

    Raises:
        ValueError: the URL is not `grpc://HOST:PORT`.
        ImportError: grpcio is missing.
        OSError: the server does not answer.
    """
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    if not parsed.host or parsed.port is None or parsed.database or parsed.query:
        raise ValueError("it must be grpc://HOST:PORT and no more")
    if parsed.username or parsed.password:
        raise ValueError("a gRPC proxy has no users and no passwords: it must be grpc://HOST:PORT")
    try:
        import grpc  # noqa: F401 -- Optuna imports it late, and then speaks of its own insides
    except ImportError:
        raise ImportError("grpcio is missing: pip install 'kdsearch[grpc]'") from None
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import GrpcStorageProxy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
        backend = GrpcStorageProxy(host=host, port=parsed.port)
    try:
        backend.wait_server_ready(timeout=SERVER_TIMEOUT_SECONDS)
    except ConnectionError:
        backend.close()
        raise ConnectionError(f"no gRPC proxy answered in {SERVER_TIMEOUT_SECONDS} s") from None
    return backend


def study_names(storage: BaseStorage, *, searches: bool = False) -> list[str]:
    """Names of all studies in a storage, sorted; with `searches`, without those that hold the slides' rows."""
    return sorted(
        study.study_name for study in storage.get_all_studies() if not (searches and StudyAttr.KIND in study.user_attrs)
    )


def load_study(storage: BaseStorage, name: str) -> Study:
    """The study of that name, without a sampler of ours.

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
    """The trial of that number.

    Raises:
        StorageError: there is none.
    """
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        raise StorageError(
            f"--trial must be in the study, which holds trials 0 to {len(trials) - 1}"
            if trials
            else "--trial must be in the study, which holds no trials",
            got=number,
            remedy="`kdsearch status` lists the front",
        )
    return trials[number]
