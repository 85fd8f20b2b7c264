"""Measured or estimated ratios of candidates, without timing them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from optuna import Study
from optuna.trial import TrialState

from kdsearch import networks
from kdsearch.measure import flops
from kdsearch.records import Attr, Config, architecture
from kdsearch.search.failures import is_exhausted
from kdsearch.search.workshop import Workshop

NEW = 24  # architectures counted per trial


def _key(config: Config) -> str:
    return json.dumps(architecture(config), sort_keys=True)


class LikelyRatio:
    """Estimates inference ratios from those that a study has timed.

    A timed architecture has its ratio. Otherwise the log ratio is interpolated over the log of the counted operations'
    ratio, and extrapolated along the last two timed ones.

    Args:
        workshop: provides the teacher and students that are counted.
    """

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._teacher = float(flops.count(workshop.teacher.network, workshop.split.example(1)))
        self._counted: dict[str, float] = {}

    def __call__(self, study: Study, configs: Sequence[Config]) -> list[tuple[float] | None]:
        """Return the likely ratio of each configuration; None if nothing was timed yet or it must not be proposed.

        Counting takes time, so at most `NEW` architectures are counted for the first time; the others are None as well.
        """
        trials = study.get_trials(deepcopy=False)
        timed: dict[str, float] = {}
        known: dict[float, float] = {}
        for trial in trials:
            ratio, other = trial.user_attrs.get(Attr.RATIO), trial.user_attrs.get(Attr.CONFIG)
            if ratio is not None and isinstance(other, dict):
                timed.setdefault(_key(other), float(ratio))
                known[self.counted(other)] = float(ratio)
        failed = any(trial.state == TrialState.FAIL for trial in trials)
        found: list[tuple[float] | None] = []
        new = 0
        for config in configs:
            key = _key(config)
            new += key not in timed and key not in self._counted
            if not known or (failed and is_exhausted(study, config)):
                found.append(None)
            elif key in timed:
                found.append((timed[key],))
            elif key in self._counted or new <= NEW:
                found.append((interpolated(self.counted(config), known),))
            else:
                found.append(None)
        return found

    def counted(self, config: Config) -> float:
        """Return the teacher's operations / the student's, counted without allocating weights."""
        key = _key(config)
        if key not in self._counted:
            workshop = self._workshop
            split = workshop.split
            count = _operations(workshop.spec.student.family, key, tuple(split.shape), len(split.classes))
            self._counted[key] = self._teacher / count
        return self._counted[key]


@cache
def _operations(family: str, key: str, shape: tuple[int, ...], classes: int) -> int:
    """Operations of a student of an architecture, counted once a process: that takes some milliseconds.

    Args:
        family: its name.
        key: of `_key`.
        shape: of an image.
        classes: of the data set.
    """
    channels, height, width = shape
    with torch.device("meta"):
        student = networks.student_family(family).build(json.loads(key), (channels, height, width), classes)
        return flops.count(student, torch.zeros(1, *shape))


def interpolated(counted: float, known: dict[float, float]) -> float:
    """Interpolate a ratio over counted ratios, piecewise linear on logarithmic axes.

    Args:
        counted: ratio of counted operations.
        known: measured ratio by counted ratio; at least one.
    """
    counts = sorted(known)
    if len(counts) == 1:
        return known[counts[0]] * counted / counts[0]
    logs = np.log10(counts), np.log10([known[count] for count in counts])
    inside = float(np.interp(math.log10(counted), *logs))
    for end, inner in ((0, 1), (-1, -2)):
        beyond = math.log10(counted) - logs[0][end]
        if (beyond < 0) if end == 0 else (beyond > 0):
            slope = (logs[1][end] - logs[1][inner]) / (logs[0][end] - logs[0][inner])
            inside = float(logs[1][end] + min(max(slope, 0.0), 1.0) * beyond)
    return 10**inside
