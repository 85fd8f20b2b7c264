"""A small table made by hand: wider is slower and more accurate, curves rise as a power of the epoch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kdsearch.experiments.search_bench.tables import Table

SPACE = {
    "width": [8, 32, 128],
    "loss_weight": {"low": 0.0, "high": 1.0, "log": False, "step": 0.5},
    "temperature": {"low": 1.0, "high": 16.0, "log": True, "step": None},
    "epochs": {"low": 1, "high": 9, "log": False, "step": None},
    "batch_size": [16, 64],
}
EPOCHS = 9


def make_table(accuracy: list[list[float]] | None = None, name: str = "made") -> Table:
    """Twelve rows, or as many as there are curves."""
    configs, ratios, curves = [], [], []
    for width in (8, 32, 128):
        for batch in (16, 64):
            for weight in (0.0, 0.5):
                config = {"width": width, "loss_weight": weight, "epochs": EPOCHS, "batch_size": batch}
                configs.append(config | ({"temperature": 4.0} if weight else {}))
                ratios.append(1000.0 / width)
                error = 0.5 * width**-0.3 * (1 + 0.2 * (batch == 64) - 0.1 * weight)
                curves.append([1 - error * epoch**-0.3 for epoch in range(1, EPOCHS + 1)])
    rows = len(accuracy or curves)
    return Table(
        name=name,
        provenance={"study_file": {"space": SPACE, "data": {"name": "digits", "split_seed": 0}}, "seed": 0},
        configs=configs[:rows],
        accuracy=np.array(accuracy or curves),
        ratio=np.array(ratios[:rows]),
        seconds=np.ones((rows, EPOCHS)),
    )


@pytest.fixture
def table() -> Table:
    return make_table()


@pytest.fixture(scope="session")
def table_of() -> Callable[..., Table]:
    return make_table
