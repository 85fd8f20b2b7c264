from __future__ import annotations

import pytest
import torch
from optuna.trial import FrozenTrial, create_trial

from kdsearch.export import front_timing
from kdsearch.measure import deployed
from kdsearch.records import Attr, Timing
from kdsearch.reporting.measured import parsed
from kdsearch.system import machine


def trial(**config: object) -> FrozenTrial:
    return create_trial(values=[0.9, 2.0], user_attrs={Attr.CONFIG: {"epochs": 3, "loss_weight": 0.5} | config})


def test_equal_architectures_are_timed_once():
    trials = [trial(width=8), trial(width=300), trial(width=8, epochs=9, temperature=2.0), trial(width=8, blocks=[1])]
    assert front_timing.alike(trials) == [[trials[0], trials[2]], [trials[1]], [trials[3]]]


@pytest.mark.parametrize(
    ("name", "version"), [(front_timing.TORCH, f"torch {torch.__version__}"), (front_timing.ONNX, deployed.version())]
)
def test_a_timing_is_kept_with_what_it_is_of(name: str, version: str):
    found = front_timing.measured(7, name, Timing(3.0, 2.5, 3.5, 0.3, 0.1, batch=100, pairs=15, kind="x"), threads=2)
    assert parsed(found.stored()) == found
    assert (found.trial, found.source, found.runtime, found.version) == (7, "here", name, version)
    assert (found.ratio, found.low, found.high, found.batch, found.threads) == (3.0, 2.5, 3.5, 100, 2)
    assert found.device == machine.cpu_model()


def test_two_sittings_are_one_timing_whose_interval_holds_both():
    one = Timing(4.0, 3.5, 4.5, 0.4, 0.1, batch=100, pairs=15, kind="x")
    other = Timing(9.0, 8.0, 9.5, 0.6, 0.3, batch=100, pairs=20, kind="x")
    assert front_timing.joined(None, one) == one
    assert front_timing.joined(one, other) == Timing(6.0, 3.5, 9.5, 0.5, 0.2, batch=100, pairs=35, kind="x")
