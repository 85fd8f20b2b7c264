"""Search problems with computed curves: synthetic families, and a third-party surrogate of LCBench."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdsearch import pareto
from kdsearch.errors import KdsearchError
from kdsearch.records import Config

Floats = NDArray[np.float64]

SAMPLE = 2000  # random configurations whose front defines a problem's best
SETTINGS: dict[str, Any] = {"log": [1], "ideal": 1.0}
"""The settings of `kdsearch optimize`: for accuracies as fractions, and ratios over decades."""


class Problem(Protocol):
    """The interface that a replay needs."""

    name: str
    epochs: int  # of a full training
    observed_in: str  # unit in which the first objective is reported: "fractions", "percent" or "errors" (minimised)
    settings: dict[str, Any]  # of the pruner and of the choice of candidates, beside their defaults

    @property
    def reference(self) -> tuple[float, float]:
        """Reference point of hypervolume, (accuracy, log10 ratio)."""

    @property
    def best(self) -> float:
        """Hypervolume of the best known front."""

    def draw(self, trial: Any) -> Config:
        """Draw a configuration by the trial's `suggest_` methods."""

    def ratio(self, config: Config) -> float:
        """Return the inference ratio, known before training."""

    def curves(self, config: Config) -> tuple[Floats, Floats]:
        """Return observed accuracy after each epoch, and the true (or test) one; (epochs,) each, fractions."""


def best_of_sample(problem: Problem) -> float:
    """Return the hypervolume of the true front of random configurations."""
    random = np.random.default_rng(0)
    points = []
    for _ in range(SAMPLE):
        config = problem.draw(_Random(random))
        points.append((float(problem.curves(config)[1].max()), math.log10(problem.ratio(config))))
    return pareto.hypervolume(points, problem.reference)


class _Random:
    """Draws at random with the interface of a trial."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if log:
            return float(np.exp(self._random.uniform(math.log(low), math.log(high))))
        return self._random.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        value = self.suggest_float(name, low - 0.5, high + 0.499, log=log)
        return int(np.clip(round(value), low, high))


@dataclass(frozen=True)
class Point:
    """A configuration of a family."""

    final: float  # true error at the end
    pace: float  # 0 to 1, how fast it learns
    lot: float  # uniform from 0 to 1, a function of the whole configuration that no single parameter reveals


def _power(point: Point, epochs: Floats, *, final: float | None = None, rate: float | None = None) -> Floats:
    """Return an error that falls from 0.9 to the final error as a power of the epoch."""
    final = point.final if final is None else final
    rate = 0.3 + point.pace if rate is None else rate
    last = epochs[-1]
    share = (epochs**-rate - last**-rate) / (1 - last**-rate)
    found: Floats = final + (0.9 - final) * share
    return found


def _crossing(point: Point, epochs: Floats) -> Floats:
    """Return a curve where faster learning ends worse."""
    return _power(point, epochs, final=point.final + 0.25 * point.pace * (1 - point.final), rate=0.2 + 2.5 * point.pace)


def _bloom(point: Point, epochs: Floats, *, final: float | None = None) -> Floats:
    """Return a curve that stays flat for a third to two thirds of the training, then falls at once."""
    final = point.final if final is None else final
    start = epochs[-1] * (0.33 + 0.33 * point.pace)
    after = np.maximum(epochs - start, 0.0)
    found: Floats = final + (0.85 - final) * np.exp(-after / (0.08 * epochs[-1]))
    return found


def _rare(point: Point, epochs: Floats) -> Floats:
    """Return curves of which one in eight falls late, and ends better than similar ones."""
    return _bloom(point, epochs, final=0.5 * point.final) if point.lot < 1 / 8 else _power(point, epochs)


def _jump(point: Point, epochs: Floats) -> Floats:
    """Return a curve that falls half of the way at once, then jumps; the better its end, the sooner it jumps."""
    half = _power(point, epochs, final=0.5 * (0.9 + point.final), rate=1.5)
    jump = epochs >= epochs[-1] * (0.3 + 0.5 * point.final)
    return np.where(jump, point.final, half)


def _flips(point: Point, epochs: Floats) -> Floats:
    """Return curves whose order is reversed until the learning rate drops at two thirds of the training."""
    before = _power(point, epochs, final=0.65 - 0.4 * point.final, rate=0.6)
    dropped = epochs > 2 / 3 * epochs[-1]
    return np.where(dropped, point.final + 0.02 * (epochs[-1] - epochs) / epochs[-1], before)


FAMILIES: dict[str, tuple[Callable[[Point, Floats], Floats], str, bool]] = {
    "power-law": (_power, "fractions", False),
    "crossing": (_crossing, "fractions", False),
    "late-bloomers": (_bloom, "fractions", False),
    "rare-bloomers": (_rare, "fractions", False),
    "plateau-jump": (_jump, "fractions", False),
    "rank-flips": (_flips, "fractions", False),
    "heavy-noise": (_power, "fractions", True),
    "percent": (_power, "percent", False),
    "minimised": (_power, "errors", False),
}
"""Family names mapped to the curves' shape, the reported unit, and whether heavy-tailed noise is added."""
NOISE, TAILS = 0.02, 2.0  # scale and degrees of freedom of Student's distribution


class Family:
    """A synthetic problem of `FAMILIES` with four parameters, one of which has no effect."""

    reference = (0.1, 0.0)
    best = cached_property(best_of_sample)

    def __init__(self, name: str, *, epochs: int = 24) -> None:
        if name not in FAMILIES:
            raise KdsearchError("a family must be one of " + ", ".join(FAMILIES), got=name)
        self.name, self.epochs = name, epochs
        self.settings: dict[str, Any] = {}
        self._shape, self.observed_in, self._noisy = FAMILIES[name]

    def draw(self, trial: Any) -> Config:
        return {
            "width": trial.suggest_int("width", 8, 1024, log=True),
            "rate": trial.suggest_float("rate", 1e-4, 1e-1, log=True),
            "momentum": trial.suggest_float("momentum", 0.0, 1.0),
            "idle": trial.suggest_float("idle", 0.0, 1.0),
        }

    def ratio(self, config: Config) -> float:
        """Return a ratio that spans two decades over the widths."""
        return float((1024 / config["width"]) ** (2 / math.log10(128)))

    def curves(self, config: Config) -> tuple[Floats, Floats]:
        epochs = np.arange(1.0, self.epochs + 1)
        digest = hashlib.sha256(json.dumps([config, 0], sort_keys=True).encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        size = math.log(config["width"] / 8) / math.log(128)
        off = math.log10(config["rate"]) + 2.3 + 0.5 * config["momentum"]
        final = min(0.85, 0.05 + 0.4 * (1 - size) ** 1.5 + 0.15 * off**2)
        point = Point(final, 0.5 + 0.5 * math.tanh(off), float(random.uniform()))
        true = 1 - self._shape(point, epochs)
        noise = NOISE * random.standard_t(TAILS, self.epochs) if self._noisy else 0.0
        return np.clip(true + noise, 0.0, 1.0), true


class LCBench:
    """One task of LCBench by YAHPO's surrogate: learning curves of funnel-shaped networks on tabular data.

    Zimmer, Lindauer, Hutter, TPAMI 2021; Pfisterer et al., "YAHPO Gym", AutoML 2022 (Apache-2.0). The known objective
    is a large network's multiply-adds over the configuration's, counted with 50 inputs and 10 outputs.
    """

    observed_in, settings, epochs = "fractions", SETTINGS, 52
    reference = (0.0, 0.0)
    best = cached_property(best_of_sample)

    def __init__(self, folder: Path, task: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            encoding = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"]
            space = json.loads((folder / "config_space.json").read_text())["hyperparameters"]
            self._session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except (OSError, KeyError, ValueError) as error:
            raise KdsearchError(
                f"lcbench:PATH must be a folder with model.onnx, encoding.json and config_space.json: {error}",
                got=folder,
            ) from error
        if task not in encoding:
            raise KdsearchError("lcbench:PATH:TASK must name one of its tasks, by OpenML id", got=task)
        self.name = f"lcbench-{task}"
        self._task = int(encoding[task])
        self._space = {entry["name"]: entry for entry in space if entry["name"] not in ("OpenML_task_id", "epoch")}
        self._most = self._operations({"num_layers": 5, "max_units": 1024})

    def draw(self, trial: Any) -> Config:
        found: Config = {}
        for name, entry in self._space.items():
            suggest = trial.suggest_int if entry["type"] == "uniform_int" else trial.suggest_float
            found[name] = suggest(name, entry["lower"], entry["upper"], log=entry["log"])
        return found

    def ratio(self, config: Config) -> float:
        return self._most / self._operations(config)

    @staticmethod
    def _operations(config: Config) -> float:
        widths = [50.0, *np.linspace(config["max_units"], 10, config["num_layers"] + 1)]
        return float(sum(a * b for a, b in itertools.pairwise(widths)))

    def curves(self, config: Config) -> tuple[Floats, Floats]:
        """Return validation accuracy twice: the surrogate has no test accuracy and no noise."""
        names = ("batch_size", "learning_rate", "momentum", "weight_decay", "num_layers", "max_units", "max_dropout")
        numbers = np.tile([0.0, *(float(config[name]) for name in names)], (self.epochs, 1)).astype(np.float32)
        numbers[:, 0] = np.arange(1, self.epochs + 1)
        task = np.full((self.epochs, 1), self._task, dtype=np.int32)
        outputs = self._session.run(None, {"x_cat": task, "x_cont": numbers})[0]
        accuracy: Floats = np.clip(outputs[:, 1].astype(np.float64) / 100, 0.0, 1.0)
        return accuracy, accuracy


def lcbench_tasks(folder: Path, *, tuning: bool = False) -> list[str]:
    """List tasks of LCBench: every second of config_space.json's list for the report, the others for tuning."""
    try:
        space = json.loads((folder / "config_space.json").read_text())["hyperparameters"]
        tasks: Sequence[str] = next(entry["choices"] for entry in space if entry["name"] == "OpenML_task_id")
    except (OSError, KeyError, ValueError, StopIteration) as error:
        raise KdsearchError(f"lcbench:PATH must be a folder with config_space.json: {error}", got=folder) from error
    return list(tasks[0 if tuning else 1 :: 2])
