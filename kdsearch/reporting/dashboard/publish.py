"""Publish a figure and a note on a study's page in optuna-dashboard, each as one attribute that is replaced whole.

The dashboard's own `save_plotly_graph_object` and `save_note` cut their text into pieces of 2,045 characters and write
each in a transaction of its own, so a concurrent reader gets a mixture of the old text and the new one. The dashboard
joins any number of pieces of any length, so one piece is valid at every moment.
"""

from __future__ import annotations

import datetime
from typing import Any

from optuna import Study
from optuna.storages import BaseStorage

from kdsearch.records import StudyAttr
from kdsearch.reporting.collect import collect
from kdsearch.reporting.dashboard.figure import front
from kdsearch.reporting.dashboard.note import MARK, note

FIGURE = "kdsearch-front"
FIGURE_KEY = f"dashboard:plot_data:{FIGURE}:"
NOTE_KEY = "dashboard:note_str:"
NOTE_VERSION = "dashboard:note_ver"
DEFAULT_TRIALS = 50  # without a limit; the search's own constant is out of reach: reporting does not import search


class Page:
    """Writes a study's figure and note to its storage.

    Args:
        storage_url: where the study lies; a password in it is hidden.
    """

    def __init__(self, storage_url: str) -> None:
        self._url = storage_url

    def __call__(self, study: Study, over: bool) -> None:
        """Write the parts that have changed.

        Args:
            study: one made by `kdsearch optimize`.
            over: whether its run is over.
        """
        data = collect(study, storage_url=self._url)
        options = study.user_attrs.get(StudyAttr.OPTIONS)
        options = {"default_trials": DEFAULT_TRIALS} | (options if isinstance(options, dict) else {})
        now = datetime.datetime.now(datetime.UTC)
        storage, study_id = study._storage, study._study_id
        standing = storage.get_study_system_attrs(study_id)
        put(storage, study_id, standing, FIGURE_KEY, front(data))
        if is_ours(standing):
            put(storage, study_id, standing, NOTE_KEY, note(data, options=options, over=over, now=now))
            # after the text: the dashboard reloads a note when its version changes
            storage.set_study_system_attr(study_id, NOTE_VERSION, int(standing.get(NOTE_VERSION, 0)) + 1)


def is_ours(attributes: dict[str, Any]) -> bool:
    """Whether a study's note may be replaced: it is missing, or still carries our mark."""
    pieces = {key: value for key, value in attributes.items() if key.startswith(NOTE_KEY)}
    text = "".join(str(pieces[key]) for key in sorted(pieces, key=lambda key: int(key.removeprefix(NOTE_KEY))))
    return not text.strip() or MARK in text


def put(storage: BaseStorage, study_id: int, standing: dict[str, Any], key: str, text: str) -> None:
    """Write a text as one piece and empty pieces that another program wrote after it.

    Args:
        storage, study_id: of the study.
        standing: its system attributes as just read.
        key: prefix of the pieces' names.
        text: of any length; a column of MySQL holds 65,535 bytes.
    """
    for name, value in standing.items():
        if name.startswith(key) and name != f"{key}0" and value:
            storage.set_study_system_attr(study_id, name, "")
    if standing.get(f"{key}0") != text:
        storage.set_study_system_attr(study_id, f"{key}0", text)
