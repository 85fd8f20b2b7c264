from __future__ import annotations

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, create_trial

from kdsearch import stats
from kdsearch.export import front_timing
from kdsearch.measure import onnx
from kdsearch.records import Attr, Timing
from kdsearch.reporting.measured import parsed
from kdsearch.system import machine


def trial(**config: object) -> FrozenTrial:
    return create_trial(values=[0.9, 2.0], user_attrs={Attr.CONFIG: {"epochs": 3, "loss_weight": 0.5} | config})


def test_equal_architectures_are_timed_once():
    trials = [trial(width=8), trial(width=300), trial(width=8, epochs=9, temperature=2.0), trial(width=8, blocks=[1])]
    assert front_timing.alike(trials) == [[trials[0], trials[2]], [trials[1]], [trials[3]]]


@pytest.mark.parametrize(
    ("name", "version"), [(front_timing.TORCH, f"torch {torch.__version__}"), (front_timing.ONNX, onnx.version())]
)
def test_a_timing_is_kept_with_what_it_is_of(name: str, version: str):
    found = front_timing.measured(7, name, Timing(3.0, 2.5, 3.5, 0.3, 0.1, batch=100, pairs=15, kind="x"), threads=2)
    assert parsed(found.stored()) == found
    assert (found.trial, found.source, found.runtime, found.version) == (7, "here", name, version)
    assert (found.ratio, found.low, found.high, found.batch, found.threads) == (3.0, 2.5, 3.5, 100, 2)
    assert found.device == machine.cpu_model()


def test_sittings_are_joined_and_stored_with_every_trial_of_their_architecture():
    study = optuna.create_study(directions=["maximize"] * 2)
    groups = [[trial(width=8), trial(width=8)], [trial(width=9)]]
    for number, each in enumerate(one for group in groups for one in group):
        each.number = number

    def timings(*ratios: float) -> list[Timing]:
        return [Timing(ratio, ratio, ratio, ratio, 1.0, batch=100, pairs=15, kind="x") for ratio in ratios]

    taken = {(name, first): timings(*ratios) for name in (front_timing.TORCH, front_timing.ONNX)
             for first, ratios in ((0, (4.0, 9.0, 6.0)), (2, (5.0, 5.1, 5.2)))}  # fmt: skip
    kept = [one for one in front_timing._kept(study, groups, taken, 1).values() if one.runtime == front_timing.TORCH]
    assert [one.trial for one in kept] == [0, 1, 2]
    pooled = stats.spread([[4.0, 9.0, 6.0], [5.0, 5.1, 5.2]])
    for one, ratios in zip(kept, ([4.0, 9.0, 6.0], [4.0, 9.0, 6.0], [5.0, 5.1, 5.2]), strict=True):
        expected = stats.sittings_interval(ratios, pooled)
        assert expected is not None
        assert (one.ratio, one.low, one.high) == (expected.mean, expected.low, expected.high)
        assert study.user_attrs[one.key] == one.stored()
    assert kept[0].teacher_seconds == 6.0
