"""Tables of full learning curves from real training: files, rows as an Optuna study sees them, and their sampler."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from pydantic import TypeAdapter

from kdsearch import pareto
from kdsearch.errors import KdsearchError
from kdsearch.experiments.search_bench.problems import SETTINGS
from kdsearch.records import Config
from kdsearch.search import space
from kdsearch.search.sampling.proposals import Draft, Near
from kdsearch.spec import Dimension, Range
from kdsearch.system import files, machine

Row = dict[str, Any]
"""`config`, `ratio` (with `low` and `high`), `parameters`; one an epoch `accuracy` (validation), `test` (not in the
tables of digits and MNIST) and `seconds` (training alone); `failed` where the training failed."""

FOLDER = Path(__file__).parent / "data"


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

    @property
    def tested(self) -> NDArray[np.float64]:
        """(rows, epochs), test accuracy, or validation accuracy where the table holds no other."""
        return self.accuracy if self.test is None else self.test

    @cached_property
    def best(self) -> float:
        """Hypervolume of the front of all rows' checkpoints, by test accuracy where the table holds it."""
        points = zip(self.tested.max(axis=1).tolist(), np.log10(self.ratio).tolist(), strict=True)
        return pareto.hypervolume(list(points), self.reference)


def shipped() -> list[str]:
    """Return the names of the tables that ship with the package."""
    return sorted(path.name.removesuffix(".json.gz") for path in FOLDER.glob("*.json.gz"))


def file_of(name: str) -> Path:
    """Return the file of a table by its shipped name or its path, existing or not."""
    return Path(name) if name.endswith(".gz") else FOLDER / f"{name}.json.gz"


def load(name: str) -> Table:
    """Load a table by its shipped name or its path, without rows whose training failed.

    Raises:
        KdsearchError: the file does not exist or is no table.
    """
    path = file_of(name)
    try:
        raw = read(path)
        rows = [row for row in raw["rows"] if "failed" not in row]
        return Table(
            name=path.name.removesuffix(".json.gz"),
            provenance=raw["provenance"],
            configs=[row["config"] for row in rows],
            accuracy=_column(rows, "accuracy"),
            ratio=_column(rows, "ratio"),
            seconds=_column(rows, "seconds"),
            test=_column(rows, "test") if rows and all("test" in row for row in rows) else None,
        )
    except FileNotFoundError:
        remedy = f"choose one of {', '.join(shipped())}, or give the path of a table (*.json.gz)"
        raise KdsearchError("a table must exist", got=name, remedy=remedy) from None
    except (KeyError, ValueError) as error:
        raise _unreadable(path, error) from None


def read(path: Path) -> dict[str, Any]:
    """Return what `save` wrote: `provenance` and `rows`, those whose training failed included.

    Raises:
        FileNotFoundError: there is no such file.
        KdsearchError: it is no table.
    """
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        return {"provenance": dict(found["provenance"]), "rows": list(found["rows"])}
    except FileNotFoundError:
        raise
    except (OSError, EOFError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> KdsearchError:
    remedy = "make it again with `kdsearch bench tabulate`"
    return KdsearchError(f"a table must be readable: {error}", got=path, remedy=remedy)


def _column(rows: list[Row], key: str) -> NDArray[np.float64]:
    return np.array([row[key] for row in rows], dtype=np.float64)


def save(path: Path, provenance: dict[str, Any], rows: list[Row]) -> None:
    """Write a table as compressed JSON, atomically.

    Raises:
        KdsearchError: the file cannot be written.
    """
    text = json.dumps({"provenance": provenance, "rows": rows}, separators=(",", ":"))
    packed = gzip.compress(text.encode(), mtime=0)
    files.write_whole(path, lambda beside: beside.write_bytes(packed))


EPOCHS = "epochs"
Params = dict[str, Any]


def _key(params: Params) -> frozenset[tuple[str, Any]]:
    return frozenset((name, value) for name, value in params.items() if name != EPOCHS)


def _place(value: Any, distribution: BaseDistribution) -> float:
    """Return a parameter's position in its range, 0 to 1; on a log scale for log ranges and lists of sizes."""
    if isinstance(distribution, CategoricalDistribution):
        choices: list[Any] = list(distribution.choices)
        low, high = min(choices), max(choices)
        log = low > 0
    else:
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, high, log = distribution.low, distribution.high, distribution.log
    if low == high:
        return 0.0
    return math.log(value / low) / math.log(high / low) if log else float((value - low) / (high - low))


class Rows:
    """The rows of a table, which are all that a study on it can train.

    Args:
        table: with the search space in its provenance.
        sampled_epochs: a trial's number of epochs is a parameter, 1 to the table's; else every trial has all of them.

    Attributes:
        dimensions: the search space, with `epochs` if sampled.
        params: each row's parameters, without `epochs`.
        distributions: of these parameters, and of `epochs` where it is one.
        free: (rows,), whether no trial has had the row yet.
    """

    observed_in, settings = "fractions", SETTINGS

    def __init__(self, table: Table, *, sampled_epochs: bool) -> None:
        spaces: TypeAdapter[dict[str, Dimension]] = TypeAdapter(dict[str, Dimension])
        self.table = table
        self.dimensions = spaces.validate_python(table.provenance["study_file"]["space"])
        self.dimensions[EPOCHS] = Range(low=1, high=table.epochs) if sampled_epochs else table.epochs
        self.params: list[Params] = []
        self.distributions: list[dict[str, BaseDistribution]] = []
        for config in table.configs:
            fixed = FixedTrial(space.trial_parameters(config | {EPOCHS: 1}, self.dimensions))
            space.suggest(fixed, self.dimensions)  # type: ignore[arg-type]  # it has what suggest calls
            self.params.append({name: value for name, value in fixed.params.items() if name != EPOCHS})
            self.distributions.append(dict(fixed.distributions))
        self.free = np.ones(len(self.params), dtype=np.bool_)
        self._index = {_key(params): row for row, params in reversed(list(enumerate(self.params)))}
        self._names = sorted({name for params in self.params for name in params})
        self._places = np.array([
            self._numbers(params, held) for params, held in zip(self.params, self.distributions, strict=True)
        ])  # fmt: skip
        self.name, self.epochs, self.reference, self.best = table.name, table.epochs, table.reference, table.best

    def __len__(self) -> int:
        return len(self.params)

    def curves(self, config: Config) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return validation accuracy, and test accuracy where the table holds it; (epochs,) each."""
        row = self._row(config)
        return self.table.accuracy[row], self.table.tested[row]

    def find(self, params: Params) -> int:
        """Return the row with these parameters, ignoring `epochs`; a KeyError where there is none."""
        return self._index[_key(params)]

    def _row(self, config: Config) -> int:
        return self.find(space.trial_parameters(config, self.dimensions))

    def take(self, row: int) -> None:
        """Assign a row to a trial; once all rows are taken, all become free again."""
        self.free[row] = False
        if not self.free.any():
            self.free[:] = True

    def ratio(self, config: Config) -> float:
        """Return the inference ratio of the row with this configuration, ignoring `epochs`."""
        return float(self.table.ratio[self._row(config)])

    def nearest(self, params: Params, held: dict[str, BaseDistribution]) -> int:
        """Return the free row nearest to the given parameters.

        The distance is Gower's (Biometrics 1971): the mean, over the parameters that both have, of the difference of
        their positions in the range (on a log scale for log ranges and for lists of sizes).
        """
        apart = np.abs(self._places - self._numbers(params, held))
        both = ~np.isnan(apart)
        distance = np.where(both, apart, 0.0).sum(axis=1) / np.maximum(both.sum(axis=1), 1)
        return int(np.argmin(np.where(self.free, distance, np.inf)))

    def draw(self, trial: Any) -> Config:
        """Suggest a whole configuration on a trial or a draft of one; a draft that moves is put on the nearest row."""
        config = space.suggest(trial, self.dimensions)
        if not isinstance(trial, Near):
            return config
        row = self.nearest(trial.params, trial.distributions)
        epochs = {EPOCHS: trial.params[EPOCHS]} if EPOCHS in trial.params else {}
        trial.params, trial.distributions = self.params[row] | epochs, self.distributions[row]
        return self.table.configs[row] | {EPOCHS: config[EPOCHS]}

    def _numbers(self, params: Params, held: dict[str, BaseDistribution]) -> NDArray[np.float64]:
        """Return (names,), NaN for missing parameters."""
        return np.array([_place(params[name], held[name]) if name in params else np.nan for name in self._names])


class TableSampler(BaseSampler):
    """Proposes only rows: a draw of another sampler is moved to the nearest row that no trial has had yet.

    The trial gets the row's own parameters, so that every sampler learns from what was really trained.
    Without an inner sampler, each free row is equally likely.
    """

    def __init__(self, rows: Rows, inner: BaseSampler | None, *, seed: int) -> None:
        self._rows = rows
        self._inner = inner
        self._random = np.random.default_rng(machine.derive_seed("rows", seed))
        self._drawn: Params = {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        if self._inner is not None:
            self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if self._inner is None:
            row = int(self._random.choice(np.flatnonzero(self._rows.free)))
            epochs: int | None = self._any_length()
        else:
            draft = Draft(self._inner, study, trial)
            self._rows.draw(draft)
            row = self._rows.nearest(draft.params, draft.distributions)
            epochs = draft.params.get(EPOCHS)
        held = self._rows.distributions[row]
        self._drawn = self._rows.params[row] | ({EPOCHS: epochs} if EPOCHS in held else {})
        return held

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {name: self._drawn[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the parameter of any row that has it, for a move from a row that lacks it."""
        if param_name == EPOCHS:
            return self._any_length()
        values = [params[param_name] for params in self._rows.params if param_name in params]
        return values[int(self._random.integers(len(values)))]

    def _any_length(self) -> int:
        return int(self._random.integers(1, self._rows.table.epochs + 1))

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        if self._inner is not None:
            self._inner.after_trial(study, trial, state, values)
