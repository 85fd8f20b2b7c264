from __future__ import annotations

import random

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.figures import space_figures
from kdsearch.reporting.figures.space_figures import importances

SPACE = {"width": IntDistribution(1, 100), "temperature": FloatDistribution(1, 20)}


def trials(count: int) -> list[optuna.trial.FrozenTrial]:
    """Accuracy follows the temperature, the ratio the width."""
    draw = random.Random(0)
    points = [{"width": draw.randint(1, 100), "temperature": draw.uniform(1, 20)} for _ in range(count)]
    return [
        create_trial(values=[p["temperature"] / 20, 1000 / p["width"]], params=p, distributions=SPACE) for p in points
    ]


def test_each_objective_has_the_parameter_that_decides_it():
    found = importances(trials(60)).set_index("parameter")
    assert found["accuracy"]["temperature"] > 0.9
    assert found["ratio"]["width"] > 0.9
    assert found["accuracy"].sum() == pytest.approx(1)


def test_a_parameter_that_some_trials_lack_is_judged_from_the_others():
    bare = create_trial(values=[0.5, 1.0], params={"width": 5}, distributions={"width": SPACE["width"]})
    assert [*importances([*trials(40), bare])["parameter"]] == ["temperature", "width"]


@pytest.mark.parametrize("found", [[], trials(5), [create_trial(state=TrialState.FAIL)] * 20])
def test_few_trials_have_no_importances(found):
    assert importances(found).empty


def test_slices_offer_the_parameters_that_varied(data: StudyData):
    figure = space_figures.slices(data)
    assert [button.label for button in figure.layout.updatemenus[0].buttons] == ["width", "epochs"]
    assert sum(len(trace.x) for trace in figure.data) == 6
    assert sorted(figure.data[1].customdata) == [0, 3, 4]  # the front


def test_one_value_makes_no_slice(make_trial, gather):
    same = [make_trial([0.9], 10.0), make_trial([0.8], 10.0)]
    assert space_figures.slices(gather(same)) is None
