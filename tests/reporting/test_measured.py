from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from kdsearch.records import StudyAttr
from kdsearch.reporting.measured import COLUMNS, DEVICE, HERE, Measured, measurements, parsed

ONE = Measured(
    trial=3, source=HERE, runtime="ONNX Runtime", version="onnxruntime 1.32.0", device="a CPU", provider="", threads=1,
    batch=1000, ratio=10.0, low=9.0, high=11.0, teacher_seconds=0.5, student_seconds=0.05, date="2026-11-25",
)  # fmt: skip
EXPORTED = {
    "trial": 3, "format": "onnx", "runtime": "onnxruntime 1.32.0", "ratio": 10.0, "low": 9.0, "high": 11.0,
    "teacher_seconds": 0.5, "student_seconds": 0.05, "batch": 1000, "pairs": 15, "kind": "onnx", "test_accuracy": 0.9,
}  # fmt: skip


def test_what_is_stored_is_read_back():
    assert parsed(ONE.stored()) == ONE
    frame = measurements({ONE.key: ONE.stored(), "definition": {}, "measure": 3})
    assert list(frame.columns) == list(COLUMNS)
    assert frame.to_dict("records") == [ONE.stored()]
    assert measurements({}).empty
    assert list(measurements({}).columns) == list(COLUMNS)


def test_an_attribute_is_of_a_trial_and_a_setup():
    others: list[dict[str, Any]] = [
        {"trial": 4}, {"source": DEVICE}, {"runtime": "torch"}, {"device": "b"}, {"provider": "x"}, {"threads": 2},
        {"batch": 1},
    ]  # fmt: skip
    keys = {dataclasses.replace(ONE, **change).key for change in others} | {ONE.key}
    assert len(keys) == 8
    assert all(key.startswith(StudyAttr.MEASURED) for key in keys)
    for change in ({"version": "2"}, {"ratio": 10.5}, {"date": "later"}):
        assert dataclasses.replace(ONE, **change).key == ONE.key


def test_an_exported_file_says_it_in_its_own_words():
    (row,) = measurements({"exported:3:onnx": EXPORTED}).to_dict("records")
    assert (row["source"], row["runtime"], row["version"], row["device"]) == ("file", "onnx", "onnxruntime 1.32.0", "")
    (row,) = measurements({"exported:3:onnx": EXPORTED | {"device": "a CPU", "threads": 2}}).to_dict("records")
    assert (row["device"], row["threads"], row["batch"], row["ratio"]) == ("a CPU", 2, 1000, 10.0)


BAD = (None, "3", True, math.nan, math.inf, -1, 10**400, [], {})


@pytest.mark.parametrize(
    "value",
    [None, 3, "text", [], {}, *({**ONE.stored(), name: bad} for name in COLUMNS for bad in BAD if bad != "3"),
     *({**ONE.stored(), name: "3"} for name in ("trial", "threads", "batch", "ratio", "low", "student_seconds")),
     {**ONE.stored(), "source": "elsewhere"}, {**ONE.stored(), "device": "x" * 201}, {**ONE.stored(), "batch": 0},
     {**ONE.stored(), "low": 10.5}, {**ONE.stored(), "high": 9.5}],
)  # fmt: skip
def test_what_is_malformed_falls_out(value: object):
    assert parsed(value) is None
    assert list(measurements({"measured:1:x": value, ONE.key: ONE.stored()})["trial"]) == [3]


@pytest.mark.parametrize("value", [None, 3, [], {}, EXPORTED | {"ratio": "x"}, EXPORTED | {"format": None},
                                   EXPORTED | {"device": 3}, EXPORTED | {"threads": -1}])  # fmt: skip
def test_a_malformed_export_falls_out(value: object):
    assert measurements({"exported:3:onnx": value}).empty
