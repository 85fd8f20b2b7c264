from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna import Study
from optuna.trial import create_trial

from kdsearch.errors import KdsearchError
from kdsearch.export import device_folder
from kdsearch.records import Attr, StudyAttr
from kdsearch.reporting.measured import measurements

PRINT = "ab" * 32
SOUND: dict[str, Any] = {
    "format": "kdsearch device timing", "version": 1, "study": "s", "trial": 1, "fingerprint": PRINT,
    "ratio": 12.5, "low": 12.0, "high": 13.0, "teacher_seconds": 0.5, "student_seconds": 0.04, "pairs": 15,
    "batch": 100, "threads": 4, "provider": "CPUExecutionProvider", "providers": ["CPUExecutionProvider"],
    "onnxruntime": "1.32.0", "compared": 90, "device": "Raspberry Pi 5", "machine": "aarch64", "processor": "",
    "system": "Linux 6.1", "python": "3.11.2", "date": "2026-11-25T12:00:00+00:00",
}  # fmt: skip


@pytest.fixture
def study() -> Study:
    """Two complete trials; of trial 1 a folder was made."""
    found = optuna.create_study(study_name="s", directions=["maximize"] * 2)
    for _ in range(2):
        found.add_trial(create_trial(values=[0.9, 10.0], user_attrs={Attr.RATIO: 10.0}))
    found.set_user_attr(f"{StudyAttr.CARRIED}1", {PRINT: "2026-11-25"})
    return found


def file(tmp_path: Path, text: str | bytes, name: str = "device.json") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_sound_file_is_stored_once(study: Study, tmp_path: Path):
    path = file(tmp_path, json.dumps(SOUND))
    (told,) = device_folder.import_results(study, [path])
    assert (told["new"], told["ratio"], told["device"], told["search_ratio"]) == (True, 12.5, "Raspberry Pi 5", 10.0)
    before = dict(study.user_attrs)
    (told,) = device_folder.import_results(study, [path])
    assert not told["new"]
    assert study.user_attrs == before
    (row,) = measurements(study.user_attrs).to_dict("records")
    assert {name: row[name] for name in ("trial", "source", "ratio", "low", "high", "batch", "threads")} == {
        "trial": 1, "source": "device", "ratio": 12.5, "low": 12.0, "high": 13.0, "batch": 100, "threads": 4,
    }  # fmt: skip
    assert row["version"] == "onnxruntime 1.32.0, Linux 6.1 aarch64, Python 3.11.2"


def test_a_later_timing_takes_the_place_of_the_same_device_and_stands_beside_another(study: Study, tmp_path: Path):
    later = SOUND | {"ratio": 12.6, "date": "2026-11-26T12:00:00+00:00"}
    for change in ({}, later, {"device": "phone"}, {"batch": 1}, {"threads": 1}, {"provider": "XNNPACK"}):
        device_folder.import_results(study, [file(tmp_path, json.dumps(SOUND | change))])
    rows = measurements(study.user_attrs)
    assert len(rows) == 5
    assert sorted(rows["ratio"]) == [12.5] * 4 + [12.6]


BROKEN = [
    ("be JSON", b""),
    ("be JSON", b"\xff\xfe"),
    ("be JSON", b"{"),
    ("be JSON", b"[" * 50_000),
    ("be JSON", b"1" * 5000),
    ("be what measure.py prints", b"[]"),
    ("be what measure.py prints", b"{}"),
    ("be what measure.py prints", b" " * 200_000),
]
CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("be what measure.py prints", {"format": "another"}),
    ("be of version 1, not 2", {"version": 2}),
    ("be of version 1, not None", {"version": None}),
    *((f"hold a whole number as {name}", {name: value}) for name in ("trial", "batch", "threads", "pairs")
      for value in (None, "1", 1.0, True, -1, 10**400)),
    *((f"hold a whole number as {name}", {name: 0}) for name in ("batch", "threads", "pairs")),
    *((f"hold a finite number above 0 as {name}", {name: value})
      for name in ("ratio", "low", "high", "teacher_seconds", "student_seconds")
      for value in (None, "1", True, 0, -1.0, math.nan, math.inf, 10**400)),
    *((f"hold a printable text of at most 200 characters as {name}", {name: value})
      for name in ("device", "provider", "onnxruntime", "date", "system", "python", "machine", "fingerprint")
      for value in (None, 3, "", "x" * 201, "a\nb", "a\x1b[2J", "\u202e")),
    ("hold a printable text", {"study": 3}),
    ("hold a ratio within its interval", {"low": 12.6}),
    ("hold a ratio within its interval", {"high": 12.4}),
    ("be of study s, not other", {"study": "other"}),
    ("be of networks that `kdsearch measure --trial 1` wrote for this study", {"fingerprint": "cd" * 32}),
    ("be of networks that `kdsearch measure --trial 0` wrote for this study", {"trial": 0}),
    ("be of networks that `kdsearch measure --trial 9` wrote for this study", {"trial": 9}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "text"), [*BROKEN, *((rule, json.dumps(SOUND | change).encode()) for rule, change in CHANGED)]
)
def test_a_file_that_breaks_a_rule_is_one_line_and_nothing_is_stored(
    study: Study, tmp_path: Path, rule: str, text: bytes
):
    before = dict(study.user_attrs)
    sound, bad = file(tmp_path, json.dumps(SOUND), "sound.json"), file(tmp_path, text)
    with pytest.raises(KdsearchError) as refused:
        device_folder.import_results(study, [sound, bad])
    assert f"a file to import must {rule}" in str(refused.value)
    assert str(bad) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert study.user_attrs == before


def test_a_file_that_is_not_there_or_lacks_a_value_is_refused(study: Study, tmp_path: Path):
    with pytest.raises(KdsearchError, match=r"--import must name a file to read: No such file"):
        device_folder.import_results(study, [tmp_path / "none.json"])
    for name in SOUND.keys() - {"providers", "compared", "processor"}:
        lacking = {key: value for key, value in SOUND.items() if key != name}
        with pytest.raises(KdsearchError, match="a file to import must"):
            device_folder.import_results(study, [file(tmp_path, json.dumps(lacking))])


@pytest.mark.parametrize("stored", [None, 3, [PRINT], "x" + PRINT])
def test_a_study_that_holds_nonsense_as_fingerprints_takes_nothing(study: Study, tmp_path: Path, stored: object):
    study.set_user_attr(f"{StudyAttr.CARRIED}1", stored)
    with pytest.raises(KdsearchError, match="be of networks that"):
        device_folder.import_results(study, [file(tmp_path, json.dumps(SOUND))])
