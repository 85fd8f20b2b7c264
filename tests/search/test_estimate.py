from __future__ import annotations

import dataclasses
import itertools

import pytest

from kdsearch.search import estimate
from kdsearch.search.budget import Budget
from kdsearch.search.plan import Plan
from kdsearch.spec import Augment

ANCHORS = [{"epochs": 10}, {"epochs": 3}]


def epochs_within(**limits) -> tuple[list[int], list[int]]:
    """Epochs of the anchors and of the configurations that a budget pays for, each drawn one of 4 epochs."""
    paid = estimate.within(Budget(**limits), ANCHORS, itertools.repeat({"epochs": 4, "width": 8}))
    anchors, drawn = ([config["epochs"] for config in configs] for configs in paid)
    return anchors, drawn


@pytest.mark.parametrize(
    ("limits", "paid"),
    [
        ({"trials": 1}, ([10], [])),
        ({"trials": 4}, ([10, 3], [4, 4])),
        ({"epochs": 5}, ([10], [])),  # an anchor is trained to its end
        ({"epochs": 13}, ([10, 3], [])),
        ({"epochs": 22}, ([10, 3], [4, 4, 1])),
        ({"epochs": 22, "trials": 3}, ([10, 3], [4])),
        ({"epochs": 14, "trials": 30}, ([10, 3], [1])),
    ],
)
def test_an_estimate_is_of_the_trials_that_the_budget_pays_for(limits, paid):
    assert epochs_within(**limits) == paid


def test_a_steps_constant_cost_is_shared_by_a_larger_batch():
    measured = {size: 0.003 + 0.16 / size for size in (16, 48)}  # about a ResNet18 of 32x32 on two cores
    assert estimate.in_batches_of(128, measured) == pytest.approx(0.003 + 0.16 / 128)
    assert estimate.in_batches_of(48, measured) == measured[48]
    noisy = {16: 0.010, 48: 0.012}  # dearer in a larger batch: nothing is constant
    assert estimate.in_batches_of(128, noisy) == pytest.approx(0.013)
    assert estimate.in_batches_of(128, {16: 0.03, 48: 0.009}) == pytest.approx(48 * 0.009 / 128)


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher of 100 s, trials of 2 s an epoch and 1 s of timing each."""
    monkeypatch.setattr(estimate, "teacher_seconds", lambda plan: 100.0)
    monkeypatch.setattr(estimate, "trial_seconds", lambda plan, config: 2.0 * config["epochs"])
    monkeypatch.setattr(estimate, "timing_seconds", lambda plan, configs: 1.0 * len(configs))


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({"trials": 2}, {"teacher": 100, "timing": 2, "training": 8, "all": 110}),  # two anchors of 2 epochs here
        ({"trials": 2, "seconds": 4.5}, {"teacher": 100, "timing": 2, "training": 8, "all": 104.5}),
        ({"trials": 2, "seconds": 60}, {"teacher": 100, "timing": 2, "training": 8, "all": 110}),
        ({"epochs": 4}, {"teacher": 100, "timing": 2, "training": 8, "all": 110}),
        ({"seconds": 300}, {"teacher": 100, "trials": 300, "all": 400}),
    ],
)
def test_the_time_is_that_of_whichever_limit_comes_first(plan, limits, seconds):
    found = estimate.estimate(plan, Budget(**limits))
    assert found["seconds"] == seconds
    names = ("trials", "epochs_budget", "timeout")
    assert [found[name] for name in names] == [limits.get(name) for name in ("trials", "epochs", "seconds")]


@pytest.mark.usefixtures("priced")
def test_an_epochs_budget_costs_its_epochs(plan):
    anchors = 2 * sum(anchor.config["epochs"] for anchor in plan.spec.anchors.values())
    found = estimate.estimate(plan, Budget(epochs=100))["seconds"]["training"]
    assert found == pytest.approx(200, rel=0.35)  # the mean of a few configurations stands for all
    assert found > anchors


def augmented(plan: Plan, augment: Augment) -> Plan:
    recipe = plan.spec.student.recipe.model_copy(update={"augment": augment})
    student = plan.spec.student.model_copy(update={"recipe": recipe})
    return dataclasses.replace(plan, spec=plan.spec.model_copy(update={"student": student}))


def test_a_recipe_that_augments_pays_for_the_teachers_views(plan: Plan, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "forward_seconds", lambda network, plan: 0.01)
    wide = augmented(plan, Augment(flip=True, shift=4))  # 162 views
    # 10 epochs draw nearly 10 different views of each of 200 images, 10,000 epochs draw all
    assert estimate.views_seconds(wide, 10) == pytest.approx(0.01 * 200 * 9.73, rel=0.01)
    assert estimate.views_seconds(wide, 10_000) == pytest.approx(0.01 * 200 * 162)


def test_an_estimate_of_augmented_students_is_made(plan: Plan):
    found = estimate.estimate(augmented(plan, Augment(flip=True, shift=1)), Budget(trials=2))["seconds"]
    assert found["views"] > 0
    assert found["all"] == pytest.approx(sum(found.values()) - found["all"], abs=0.5)
    assert "views" not in estimate.estimate(plan, Budget(trials=2))["seconds"]
