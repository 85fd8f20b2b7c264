"""Tables of full learning curves from real training: reading and writing."""

from __future__ import annotations

import dataclasses
import gzip
import json
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdsearch import pareto
from kdsearch.errors import KdsearchError
from kdsearch.records import Config
from kdsearch.system import files

Row = dict[str, Any]
"""`config`, `ratio` (with `low` and `high`), `parameters`, `accuracy` (validation, one an epoch), `seconds` (one an
epoch, training alone); `failed` where the training failed."""

FOLDER = "data"


@dataclasses.dataclass(frozen=True)
class Table:
    """Full learning curves of many configurations of one study.

    Attributes:
        name: of the file.
        provenance: study file, epochs, seed, teacher, environment, date.
        configs: one a row.
        accuracy: (rows, epochs), validation accuracy, fractions.
        ratio: (rows,), inference ratio.
        seconds: (rows, epochs), of training alone.
        test: (rows, epochs), test accuracy, fractions; None in tables made before it was kept.
    """

    name: str
    provenance: dict[str, Any]
    configs: list[Config]
    accuracy: NDArray[np.float64]
    ratio: NDArray[np.float64]
    seconds: NDArray[np.float64]
    test: NDArray[np.float64] | None = None

    @property
    def epochs(self) -> int:
        """Epochs of every row."""
        return int(self.accuracy.shape[1])

    @cached_property
    def reference(self) -> tuple[float, float]:
        """Reference point of hypervolume: the worst final accuracy and the lowest log10 ratio."""
        return float(self.accuracy[:, -1].min()), float(np.log10(self.ratio.min()))

    @cached_property
    def best(self) -> float:
        """Hypervolume of the front of all rows' checkpoints, by test accuracy where the table holds it."""
        accuracy = self.accuracy if self.test is None else self.test
        points = zip(accuracy.max(axis=1).tolist(), np.log10(self.ratio).tolist(), strict=True)
        return pareto.hypervolume(list(points), self.reference)


def shipped() -> list[str]:
    """Return the names of the tables that ship with the package."""
    folder = resources.files("kdsearch.experiments.search_bench") / FOLDER
    return sorted(entry.name.removesuffix(".json.gz") for entry in folder.iterdir() if entry.name.endswith(".json.gz"))


def load(name: str) -> Table:
    """Load a table by its shipped name or its path, without rows whose training failed.

    Raises:
        KdsearchError: the file does not exist or is no table.
    """
    folder = Path(str(resources.files("kdsearch.experiments.search_bench"))) / FOLDER
    path = Path(name) if name.endswith(".gz") else folder / f"{name}.json.gz"
    try:
        raw = json.loads(gzip.decompress(path.read_bytes()))
        rows = [row for row in raw["rows"] if "failed" not in row]
        return Table(
            name=path.name.removesuffix(".json.gz"),
            provenance=raw["provenance"],
            configs=[row["config"] for row in rows],
            accuracy=np.array([row["accuracy"] for row in rows], dtype=np.float64),
            ratio=np.array([row["ratio"] for row in rows], dtype=np.float64),
            seconds=np.array([row["seconds"] for row in rows], dtype=np.float64),
            test=np.array([row["test"] for row in rows], dtype=np.float64) if rows and "test" in rows[0] else None,
        )
    except FileNotFoundError:
        remedy = f"choose one of {', '.join(shipped())}, or give the path of a table (*.json.gz)"
        raise KdsearchError("a table must exist", got=name, remedy=remedy) from None
    except (OSError, EOFError, KeyError, ValueError) as error:
        remedy = "make it anew with `kdsearch bench tabulate`"
        raise KdsearchError(f"a table must be readable: {error}", got=path, remedy=remedy) from None


def save(path: Path, provenance: dict[str, Any], rows: list[Row]) -> None:
    """Write a table as compressed JSON, atomically.

    Raises:
        KdsearchError: the file cannot be written.
    """
    text = json.dumps({"provenance": provenance, "rows": rows}, separators=(",", ":"))
    packed = gzip.compress(text.encode(), mtime=0)
    files.write_whole(path, lambda beside: beside.write_bytes(packed))
