"""`kdsearch dashboard`: optuna-dashboard with our figure, note and artifacts, on this machine only."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdsearch.cli.options import Storage
from kdsearch.errors import KdsearchError, shown
from kdsearch.storage import DEFAULT_STORAGE

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from kdsearch.reporting.dashboard.artifacts import Shelf

HOST = "127.0.0.1"
EVERY = 30.0  # seconds between two looks for new members of a front


def dashboard(
    storage: Storage = DEFAULT_STORAGE,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1; use an SSH tunnel from elsewhere.")] = 8080,
    artifacts: Annotated[
        Path | None,
        typer.Option(help="Folder of curves and model cards [default: beside the storage's file, else the user's]."),
    ] = None,
) -> None:
    """Watch studies live in optuna-dashboard, on this machine only."""
    from kdsearch.reporting.dashboard.artifacts import Shelf, folder
    from kdsearch.storage import masked, open_storage

    backend = open_storage(storage, log=False)  # makes the tables first: the dashboard cannot start without
    import optuna_dashboard

    shelf = Shelf(storage, folder(storage, artifacts))
    print(f"optuna-dashboard of {masked(storage)} on http://{HOST}:{port} (Ctrl-C ends it)", file=sys.stderr)
    for number, name in _studies(backend):
        print(f"  {shown(name)}: http://{HOST}:{port}/dashboard/studies/{number}", file=sys.stderr)
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(shelf, storage, over), daemon=True)
    keeper.start()
    try:
        optuna_dashboard.run_server(backend, host=HOST, port=port, artifact_store=shelf.store)
    except OSError as error:
        raise KdsearchError(
            f"the port must be free: {error.strerror}", got=port, remedy="give another --port"
        ) from None
    finally:
        over.set()
        keeper.join(timeout=5)


def _studies(backend: BaseStorage) -> list[tuple[int, str]]:
    """Number and name of each study, by number."""
    return sorted((study._study_id, study.study_name) for study in backend.get_all_studies())


def _keep(shelf: Shelf, url: str, over: threading.Event) -> None:
    """Brings the artifacts of all searches up to date until the dashboard ends, with a connection of its own.

    A study whose view was never written, as by an earlier version, gets one too.
    """
    warned: set[str] = set()
    seen: dict[str, object] = {}
    backend: BaseStorage | None = None
    while True:
        try:
            from kdsearch.storage import open_storage, study_names

            backend = backend or open_storage(url, log=False)
            for name in study_names(backend, searches=True):
                _keep_one(shelf, url, backend, name, seen, warned)
            backend.remove_session()
        except Exception as error:
            _warn("", error, url, warned)
        if over.wait(EVERY):
            return


def _keep_one(
    shelf: Shelf, url: str, backend: BaseStorage, name: str, seen: dict[str, object], warned: set[str]
) -> None:
    from kdsearch.records import StudyAttr
    from kdsearch.reporting.dashboard import publish
    from kdsearch.storage import load_study

    try:
        study = load_study(backend, name)
        attributes = study.user_attrs
        if StudyAttr.DEFINITION not in attributes:
            return  # not of kdsearch
        ended = [trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
        sign = (len(ended), sorted(key for key in attributes if key.startswith("confirmed:")))
        if seen.get(name) == sign:
            return
        if f"{publish.FIGURE_KEY}0" not in backend.get_study_system_attrs(study._study_id):
            publish.Page(url)(study, True)
        shelf.fill(study)
        seen[name] = sign
    except Exception as error:
        _warn(name, error, url, warned)


def _warn(name: str, error: Exception, url: str, warned: set[str]) -> None:
    """Says once a study that its artifacts are late: the dashboard shows it all the same."""
    from kdsearch.storage import hidden

    if name not in warned:
        warned.add(name)
        said = hidden((str(error).splitlines() or [type(error).__name__])[0], url)
        print(f"warning: curves and model cards of {shown(name) or 'all studies'} are late: {said}", file=sys.stderr)
