"""Optuna storages by URL, and studies by name; nothing here needs torch."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from kdsearch.errors import StorageError
from kdsearch.records import StudyAttr

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

DEFAULT_STORAGE = "sqlite:///kdsearch.db"
JOURNAL = "journal:"
SQLITE_TIMEOUT_SECONDS = 60


def masked(url: str) -> str:
    """The URL with its password replaced by `***`, for anything that is printed, logged or written."""
    if url.startswith(JOURNAL):
        return url
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "***"  # not a URL: it may hold a password anywhere


def open_storage(url: str) -> BaseStorage:
    """Opens an Optuna storage, creating its tables where they are missing.

    Args:
        url: any URL of Optuna's RDBStorage (`sqlite:///x.db`, `postgresql://...`), or `journal:PATH`.

    Raises:
        StorageError: the URL is malformed or the storage cannot be reached.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if url.startswith(JOURNAL):
            from optuna.storages.journal import JournalFileBackend

            return optuna.storages.JournalStorage(JournalFileBackend(url.removeprefix(JOURNAL)))
        engine = {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}} if url.startswith("sqlite") else {}
        return optuna.storages.RDBStorage(url, engine_kwargs=engine)
    except (SQLAlchemyError, OSError, ValueError, ImportError, RuntimeError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StorageError(
            f"the storage must be reachable: {reason.replace(url, masked(url))}",
            got=masked(url),
            remedy="check --storage (sqlite:///FILE.db, postgresql://USER:PASSWORD@HOST/DB or journal:PATH)",
        ) from None


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
