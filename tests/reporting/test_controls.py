from __future__ import annotations

import numpy as np
import pytest
from helpers.elsewhere import confirmed
from hypothesis import assume, given
from hypothesis import strategies as st

from kdsearch.records import StudyAttr
from kdsearch.reporting import controls
from kdsearch.reporting.controls import Gain, overall
from kdsearch.reporting.pages import study_page


def keep(study, prefix: str, trial: int, accuracies: list[float], ratio: float = 50.0) -> None:
    study.set_user_attr(f"{prefix}{trial}", confirmed(trial, accuracies, [ratio] * len(accuracies)))


@pytest.fixture
def controlled(typical):
    """Trials 3 and 4 of the front confirmed and controlled; the last control has not run yet."""
    keep(typical, StudyAttr.CONFIRMED, 3, [0.96, 0.962, 0.964], 90.0)
    keep(typical, StudyAttr.CONTROL, 3, [0.95, 0.952, 0.954], 90.0)
    keep(typical, StudyAttr.CONFIRMED, 4, [0.97, 0.98, 0.99], 20.0)
    keep(typical, StudyAttr.CONTROL, 4, [0.965, 0.985], 20.0)
    return typical


def test_gains_are_paired_by_seed(controlled, gather):
    first, second = controls.gains(gather(controlled))
    assert (first.trial, first.on_front, second.trial) == (3, True, 4)
    assert first.values == pytest.approx([0.01] * 3)
    assert second.values == pytest.approx([0.005, -0.005])
    assert (first.interval.n, second.interval.n) == (3, 2)


def test_the_ratio_is_that_of_the_confirmation(typical, gather):
    for prefix in (StudyAttr.CONFIRMED, StudyAttr.CONTROL):
        typical.set_user_attr(f"{prefix}3", confirmed(3, [0.96, 0.97, 0.96], [40.0, 80.0, 60.0]))
    data = gather(typical)
    assert controls.gains(data)[0].ratio == pytest.approx(data.confirmed["ratio"].iloc[0])


def test_the_section_says_the_gain_with_its_interval(controlled, gather):
    data = gather(controlled)
    said = controls.sentence(data)
    assert said.startswith("Distillation made no difference that these seeds can tell: +0.50 points of test accuracy")
    assert said.endswith("against labels alone, over 2 students of the front.")
    assert "+0.50 points" in said
    source = study_page.render(data, plotlyjs="cdn")
    assert "Was the teacher worth it?" in source
    assert said in source.replace("&#43;", "+")
    assert 'id="controls-data"' in source
    assert "| 3 | 90.0 | 96.20 % | 95.20 % |" in study_page.as_markdown(data).replace("\\", "")
    assert controls.result(data)["trials"][0]["gain"] == pytest.approx(0.01)


def test_without_controls_the_command_is_shown(data):
    source = study_page.render(data, plotlyjs="cdn")
    assert "kdsearch confirm --control --name mnist" in source
    assert "Was the teacher worth it?" not in source
    assert controls.sentence(data) == ""


def test_an_old_mix_under_sgd_is_said(typical, gather):
    data = gather(typical)
    assert controls.note(data) == controls.CHOSEN  # adam does not feel the size of a loss
    file = data.study_file | {"student": {"family": "resnet", "recipe": {"optimizer": "sgd"}}}
    typical.set_user_attr(StudyAttr.STUDY_FILE, file | {"distillation": 1})
    assert "older version" in controls.note(gather(typical))
    typical.set_user_attr(StudyAttr.STUDY_FILE, file | {"distillation": 2})
    assert controls.note(gather(typical)) == controls.CHOSEN


@given(st.lists(st.lists(st.floats(-0.1, 0.1), min_size=2, max_size=6), min_size=1, max_size=6), st.floats(-0.1, 0.1))
def test_a_gain_that_all_share_moves_the_whole_interval(values, shift):
    def of(extra: float) -> list[Gain]:
        return [Gain(n, True, 10.0, tuple(v + extra for v in one), (0.0,) * len(one)) for n, one in enumerate(values)]

    assume(any(max(one) - min(one) > 1e-6 for one in values))
    before, after = overall(of(0.0)), overall(of(shift))
    assert before.low <= before.mean <= before.high
    assert after.mean == pytest.approx(before.mean + shift, abs=1e-9)
    assert after.high - after.low == pytest.approx(before.high - before.low, abs=1e-9)


def test_the_interval_over_the_front_covers_as_often_as_promised():
    rng = np.random.default_rng(0)
    true, spread = np.array([0.01, 0.0, -0.004, 0.02]), np.array([0.004, 0.002, 0.008, 0.003])
    inside = []
    for _ in range(1500):
        drawn = rng.normal(true, spread, size=(5, 4)).T
        found = overall([Gain(n, True, 1.0, tuple(one), (0.0,) * 5) for n, one in enumerate(drawn.tolist())])
        inside.append(found.low <= true.mean() <= found.high)
    assert np.mean(inside) == pytest.approx(0.955, abs=0.02)


def test_one_seed_has_no_interval(typical, gather):
    keep(typical, StudyAttr.CONFIRMED, 3, [0.96])
    keep(typical, StudyAttr.CONTROL, 3, [0.95])
    data = gather(typical)
    assert "one seed each shows no spread" in controls.sentence(data)
    assert controls.result(data)["trials"][0]["low"] is None
    assert controls.figure(data) is None


def test_seeds_that_do_not_differ_have_no_interval(typical, gather):
    keep(typical, StudyAttr.CONFIRMED, 3, [0.96, 0.96])
    keep(typical, StudyAttr.CONTROL, 3, [0.955, 0.955])
    said = controls.sentence(gather(typical))
    assert said == "Over 1 student of the front distillation gained +0.50 points; these few seeds show no spread."
