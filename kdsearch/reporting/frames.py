"""Conversion of frames to plain rows."""

from __future__ import annotations

from typing import Any

import pandas as pd


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries with text keys."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
