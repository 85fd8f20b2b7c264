from __future__ import annotations

import pytest
import torch

from kdsearch import data, spec
from kdsearch.distil.teacher import Teacher
from kdsearch.experiments.claims import lab as labs
from kdsearch.experiments.claims.lab import Lab, Settings
from kdsearch.system.machine import data_folder


@pytest.fixture
def lab(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Digits, two epochs a student, and the session's teacher."""
    quick = Settings(epochs=2, batch_size=64)
    monkeypatch.setitem(labs.SETTINGS, "digits", quick)
    digits = data.load(spec.DataSpec(name="digits"), data_folder())
    made = Lab("digits", digits, torch.device("cpu"), seeds=2)
    made._teachers["whole", 0] = made._teachers["half", 0] = teacher
    return made
