"""Ratios measured outside of the search: in other runtimes here, of exported files, on real devices."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdsearch.records import StudyAttr

LONGEST = 200  # characters of a stored text
LARGEST = 1e12  # upper limit of a stored figure
HERE, DEVICE, FILE = "here", "device", "file"


@dataclass(frozen=True)
class Measured:
    """A ratio teacher / student that was measured outside of the search."""

    trial: int
    source: str  # HERE (`kdsearch measure`), DEVICE (imported) or FILE (verified by `kdsearch export`)
    runtime: str  # "torch", "ONNX Runtime", or the format of a file
    version: str  # of the runtime, with its name
    device: str  # its name; "" where that is not known
    provider: str  # of ONNX Runtime; "" for its CPU
    threads: int  # intra-operation threads; 0 where that is not known
    batch: int  # images a batch
    ratio: float
    low: float  # ends of the 95 % interval
    high: float
    teacher_seconds: float  # medians, a batch
    student_seconds: float
    date: str  # of the measurement; "" where that is not known

    @property
    def setup(self) -> tuple[object, ...]:
        """Return what two comparable measurements have in common."""
        return self.source, self.runtime, self.device, self.provider, self.threads, self.batch

    @property
    def key(self) -> str:
        """Return the study attribute's name: a later measurement of the same setup replaces this one."""
        told = hashlib.sha256(json.dumps(self.setup).encode()).hexdigest()
        return f"{StudyAttr.MEASURED}{self.trial}:{told[:12]}"

    def stored(self) -> dict[str, Any]:
        """Return the measurement as plain JSON."""
        return dataclasses.asdict(self)


COLUMNS = tuple(field.name for field in dataclasses.fields(Measured))
TEXTS = ("source", "runtime", "version", "device", "provider", "date")
FIGURES = ("ratio", "low", "high", "teacher_seconds", "student_seconds")


def measurements(study_attrs: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row a measurement, with the fields of `Measured`; malformed ones (others write too) are dropped."""
    readers = {StudyAttr.MEASURED: parsed, StudyAttr.EXPORTED: _of_file}
    found = (
        read(value) for key, value in study_attrs.items() for prefix, read in readers.items() if key.startswith(prefix)
    )
    return frame(one for one in found if one is not None)


def frame(found: Iterable[Measured]) -> pd.DataFrame:
    """Return measurements as rows, by trial."""
    rows = sorted(found, key=lambda one: (one.trial, *map(str, one.setup)))
    return pd.DataFrame([one.stored() for one in rows], columns=list(COLUMNS))


def parsed(stored: object) -> Measured | None:
    """Parse a stored measurement; None where it is malformed."""
    if not isinstance(stored, Mapping) or not set(COLUMNS) <= set(stored):
        return None
    sound = (
        is_whole(stored["trial"])
        and is_whole(stored["threads"])
        and is_whole(stored["batch"], least=1)
        and all(isinstance(stored[name], str) and len(stored[name]) <= LONGEST for name in TEXTS)
        and stored["source"] in (HERE, DEVICE, FILE)
        and all(is_figure(stored[name]) for name in FIGURES)
        and stored["low"] <= stored["ratio"] <= stored["high"]
    )
    return Measured(**{name: stored[name] for name in COLUMNS}) if sound else None


def is_whole(value: object, *, least: int = 0) -> bool:
    """Whether a value is a whole number from `least` to below LARGEST."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < LARGEST


def is_figure(value: object) -> bool:
    """Whether a value is a number above 0 and below LARGEST."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST


def _of_file(stored: object) -> Measured | None:
    """Convert what an export stored of a file, which has other keys."""
    if not isinstance(stored, Mapping):
        return None
    unknown = {"device": "", "threads": 0, "date": ""}
    words = {"source": FILE, "runtime": stored.get("format"), "version": stored.get("runtime"), "provider": ""}
    return parsed(unknown | dict(stored) | words)
