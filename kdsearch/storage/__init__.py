"""Optuna storages: opened by URL, passwords masked, waiting for servers that are away.

Others use `retrying`.
"""

from kdsearch.storage.masking import hidden, masked, trouble
from kdsearch.storage.opening import (
    DEFAULT_STORAGE,
    file_of,
    fold,
    load_study,
    load_trial,
    open_storage,
    study_names,
    warning,
)

__all__ = [
    "DEFAULT_STORAGE", "file_of", "fold", "hidden", "load_study", "load_trial", "masked", "open_storage", "study_names",
    "trouble", "warning",
]  # fmt: skip
