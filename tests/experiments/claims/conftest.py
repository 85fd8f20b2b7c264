from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdsearch import data, spec
from kdsearch.distil.teacher import Teacher
from kdsearch.experiments.claims import lab as labs
from kdsearch.experiments.claims.lab import Lab, Settings
from kdsearch.system.machine import data_folder


@pytest.fixture
def lab(teacher: Teacher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    """Digits, two epochs a student, the session's teacher, and no student kept."""
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path))
    quick = Settings(epochs=2, batch_size=64)
    monkeypatch.setitem(labs.SETTINGS, "digits", quick)
    digits = data.load(spec.DataSpec(name="digits"), data_folder())
    made = Lab("digits", digits, torch.device("cpu"), seeds=2)
    made._teachers["whole", 0] = made._teachers["half", 0] = teacher
    return made
