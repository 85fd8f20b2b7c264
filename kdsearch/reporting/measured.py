"""What a study holds of ratios outside of its search: in other runtimes here, of exported files, on real devices."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdsearch.records import StudyAttr

LONGEST = 200  # characters of a text
LARGEST = 1e12  # of a figure
HERE, DEVICE, FILE = "here", "device", "file"


@dataclass(frozen=True)
class Measured:
    """A ratio, teacher / student, that was measured outside of the search.

    Attributes:
        trial: the student's number.
        source: HERE (`kdsearch measure`), DEVICE (imported) or FILE (verified by `kdsearch export`).
        runtime: "torch", "ONNX Runtime", or the format of a file.
        version: of the runtime, with its name.
        device: what it was measured on; "" where that is not known.
        provider: of ONNX Runtime; "" for its CPU.
        threads: inside an operation; 0 where that is not known.
        batch: images a batch.
        ratio, low, high: with the 95 % interval.
        teacher_seconds, student_seconds: medians, a batch.
        date: of the measurement; "" where that is not known.
    """

    trial: int
    source: str
    runtime: str
    version: str
    device: str
    provider: str
    threads: int
    batch: int
    ratio: float
    low: float
    high: float
    teacher_seconds: float
    student_seconds: float
    date: str

    @property
    def setup(self) -> tuple[object, ...]:
        """What two measurements share that compare."""
        return self.source, self.runtime, self.device, self.provider, self.threads, self.batch

    @property
    def key(self) -> str:
        """The study's attribute that keeps it: a later one of the same setup takes its place."""
        told = hashlib.sha256(json.dumps(self.setup).encode()).hexdigest()
        return f"{StudyAttr.MEASURED}{self.trial}:{told[:12]}"

    def stored(self) -> dict[str, Any]:
        """As plain JSON."""
        return dataclasses.asdict(self)


COLUMNS = tuple(field.name for field in dataclasses.fields(Measured))
TEXTS = ("source", "runtime", "version", "device", "provider", "date")
FIGURES = ("ratio", "low", "high", "teacher_seconds", "student_seconds")


def measurements(study_attrs: Mapping[str, Any]) -> pd.DataFrame:
    """One row a measurement, with the fields of `Measured`; what is malformed falls out, for a storage is anybody's.

    Args:
        study_attrs: the user attributes of a study.
    """
    found = []
    for key, value in study_attrs.items():
        if str(key).startswith(StudyAttr.MEASURED):
            found.append(parsed(value))
        elif str(key).startswith(StudyAttr.EXPORTED):
            found.append(_of_file(value))
    return frame([one for one in found if one is not None])


def frame(found: Iterable[Measured]) -> pd.DataFrame:
    """Measurements as rows, by trial."""
    rows = sorted(found, key=lambda one: (one.trial, *map(str, one.setup)))
    return pd.DataFrame([one.stored() for one in rows], columns=list(COLUMNS))


def parsed(stored: object) -> Measured | None:
    """A stored measurement; None where it is malformed."""
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
    """Whether a value is a whole number that anything here can be."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < LARGEST


def is_figure(value: object) -> bool:
    """Whether a value is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST


def _of_file(stored: object) -> Measured | None:
    """What an export stored of a file, which says it in other words."""
    if not isinstance(stored, Mapping):
        return None
    known = {"device": "", "threads": 0, "date": ""} | {
        name: stored[name] for name in COLUMNS if name in stored and name != "runtime"
    }
    words = {"source": FILE, "runtime": stored.get("format"), "version": stored.get("runtime"), "provider": ""}
    return parsed(known | words)
