from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from torch import nn

from kdsearch import networks
from kdsearch.cli.output import print_plan
from kdsearch.distil import teacher as teachers
from kdsearch.search import estimate
from kdsearch.search.budget import Budget
from kdsearch.search.estimate import Pace, Paces, Size
from kdsearch.search.plan import Plan
from kdsearch.sittings import LEAST as SITTINGS
from kdsearch.spec import Augment

ANCHORS = [{"epochs": 10}, {"epochs": 3}]


@pytest.mark.parametrize(
    ("limits", "paid"),
    [
        ({"trials": 1}, ([10], 0)),
        ({"trials": 4}, ([10, 3], 2)),
        ({"epochs": 5}, ([10], 0)),  # an anchor is trained to its end
        ({"epochs": 13}, ([10, 3], 0)),
        ({"epochs": 22}, ([10, 3], 2.25)),
        ({"epochs": 22, "trials": 3}, ([10, 3], 1)),
        ({"epochs": 14, "trials": 30}, ([10, 3], 0.25)),
    ],
)
def test_an_estimate_is_of_the_trials_that_the_budget_pays_for(limits, paid):
    anchors, drawn = estimate.within(Budget(**limits), ANCHORS, 4)
    assert ([config["epochs"] for config in anchors], drawn) == paid


def test_a_pace_is_found_again_from_what_it_predicts():
    true = Pace((2e-4, 3e-9, 1e-12, 4e-10))
    sizes = [Size(n, 1000 * n**3, 1e6 * n**2, 2e4 * m) for n, m in ((3, 9), (9, 1), (20, 5), (40, 2), (7, 30))]
    measured = [(size, batch, true.seconds(size, batch)) for size in sizes for batch in (16, 512)]
    found = Pace.fitted(measured)
    assert found.terms == pytest.approx(true.terms, rel=1e-4)
    assert found.seconds(Size(5, 10, 1e7, 1e5), 100) == pytest.approx(true.seconds(Size(5, 10, 1e7, 1e5), 100))


def test_no_term_of_a_pace_is_below_zero():
    noisy = [(Size(10, 100, 1e6 * n, 1e3), 10, 1 / n) for n in range(1, 6)]  # the larger, the quicker
    assert all(term >= 0 for term in Pace.fitted(noisy).terms)


def test_a_networks_size_is_counted_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    found = estimate.size_of(network, torch.zeros(1, 3, 6, 6))
    operations = 2 * (8 * 36 * 3 * 9 + 8 * 36 * 10)
    assert found == Size(4, 8 * 27 + 8 + 2880 + 10, operations, 8 * 36 * 3 + 10)


@pytest.mark.parametrize("family", ["mlp", "resnet"])
def test_sizes_are_those_of_the_built_students(plan: Plan, family: str):
    config = {"mlp": {"width": 50}, "resnet": {"width": 16, "blocks": [1, 2, 0, 0], "stride": 2}}[family]
    student = plan.spec.student.model_copy(update={"family": family})
    other = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"student": student}))
    built = networks.student_family(family).build(config, plan.split.shape, len(plan.split.classes))
    found = estimate.sizes_of(other)(config)
    assert found == estimate.size_of(built, torch.zeros(1, *plan.split.shape))
    assert found.parameters == networks.parameters(built)


def test_what_is_measured_is_spread_from_the_least_work_to_the_most(plan: Plan):
    sizes = estimate.sizes_of(plan)
    configs = [{"width": w, "batch_size": b, "epochs": 1} for w, b in itertools.product((8, 100, 1200), (16, 512))]
    chosen = estimate.spread(configs * 3, sizes, 4)
    work = [config["batch_size"] * sizes(config).operations for config in chosen]
    assert work[:2] == [min(work), max(work)]
    assert len(chosen) == len({json.dumps(each) for each in chosen}) == 4
    assert len(estimate.spread(configs, sizes, 50)) == 6


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher of 100 s, 1 ms a step, no scoring, 20 s of answers, 1 s of timing each."""
    flat = Pace((0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(estimate, "teacher_seconds", lambda plan, network: 100.0)
    monkeypatch.setattr(estimate, "answers_seconds", lambda plan, network, configs: 20.0)
    monkeypatch.setattr(estimate, "timing_seconds", lambda plan, network, config: 1.0)
    monkeypatch.setattr(estimate, "measure", lambda plan, configs, sizes: Paces(flat, flat))
    monkeypatch.setattr(estimate, "training_seconds", lambda plan, config, pace, size: 2.0 * config["epochs"])
    monkeypatch.setattr(estimate, "TRIAL_SECONDS", 0.5)
    monkeypatch.setattr(estimate, "EPOCH_SECONDS", 0.25)


TWO = {"teacher": 100, "answers": 20, "training": 8, "timing": 2, "scoring": 0, "search": 2, "all": 132}


@pytest.mark.usefixtures("priced")
@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({"trials": 2}, TWO),  # two anchors of 2 epochs here
        ({"trials": 2, "seconds": 4.5}, TWO | {"all": 104.5}),
        ({"trials": 2, "seconds": 60}, TWO),
        ({"epochs": 4}, TWO),
        ({"seconds": 300}, {"teacher": 100, "trials": 300, "all": 400}),
    ],
)
def test_the_time_is_that_of_whichever_limit_comes_first(plan, limits, seconds):
    found = estimate.estimate(plan, Budget(**limits))
    assert found["seconds"] == seconds
    names = ("trials", "epochs_budget", "timeout")
    assert [found[name] for name in names] == [limits.get(name) for name in ("trials", "epochs", "seconds")]


@pytest.mark.usefixtures("priced")
def test_the_fronts_students_are_timed_again_where_time_is_measured(plan):
    found = estimate.parts(dataclasses.replace(plan, cost="latency"), Budget(trials=2))
    assert found["timing"] == 2 * SITTINGS  # two architectures


def test_an_epoch_is_whole_batches_and_the_rest(plan):
    pace, size = Pace((0.0, 0.0, 1.0, 0.0)), Size(1, 1, 1.0, 0.0)  # a second an image
    images = len(plan.split.train)
    for batch in (7, images, 10 * images):
        told = estimate.training_seconds(plan, {"batch_size": batch, "epochs": 3}, pace, size)
        assert told == 3 * (images - (images % batch == 1 and batch < images))


@pytest.mark.usefixtures("priced")
def test_an_epochs_budget_costs_its_epochs(plan):
    assert estimate.estimate(plan, Budget(epochs=100))["seconds"]["training"] == pytest.approx(200)


@pytest.mark.usefixtures("priced")
def test_pruning_is_stated_apart_and_only_where_it_makes_a_run_shorter(plan):
    found = estimate.estimate(plan, Budget(trials=2))
    assert found["pruning"]["seconds"] == pytest.approx(8 * 344 / 897, abs=0.1)
    assert found["seconds"]["all"] == 132  # nothing of it is taken off
    for changes in ({"pruner": "none"}, {}):
        budget = Budget(trials=2) if changes else Budget(epochs=4)
        assert estimate.estimate(plan, budget, **changes)["pruning"]["seconds"] == 0


@pytest.mark.usefixtures("priced")
def test_where_promise_counts_by_the_second_pruning_saves_more_and_small_batches_are_not_preferred(plan, monkeypatch):
    configs = [{"epochs": epochs, "batch_size": batch} for epochs in (1, 3) for batch in (16, 64)]
    assert estimate._weights(configs, 24, True) == pytest.approx([1 / 8, 1 / 8, 3 / 8, 3 / 8])
    assert estimate._weights(configs, 24, False) == pytest.approx([0.2, 0.05, 0.6, 0.15])
    monkeypatch.setattr(estimate, "counts_seconds", lambda plan, budget: True)
    pruning = estimate.estimate(plan, Budget(trials=2))["pruning"]
    assert pruning["seconds"] == pytest.approx(8 * 0.47, abs=0.1)
    assert pruning["seen"] == "as in CIFAR-10's 100 trials, epochs weighted by operations, reports/examples/cifar10.md"


@pytest.mark.usefixtures("priced")
def test_a_choice_among_candidates_means_longer_trainings(plan):
    whole = plan.spec.model_copy(update={"space": plan.spec.space | {"epochs": list(range(1, 11))}, "anchors": {}})
    longer = dataclasses.replace(plan, spec=whole)
    even, chosen = (estimate.parts(longer, Budget(trials=50), candidates=n)["training"] for n in (1, 24))
    assert even == pytest.approx(2 * 50 * 5.5, rel=0.1)
    assert chosen == pytest.approx(2 * 50 * 7.0, rel=0.1)


def augmented(plan: Plan, augment: Augment) -> Plan:
    recipe = plan.spec.student.recipe.model_copy(update={"augment": augment})
    student = plan.spec.student.model_copy(update={"recipe": recipe})
    return dataclasses.replace(plan, spec=plan.spec.model_copy(update={"student": student}))


def test_a_teacher_is_asked_for_as_many_views_as_the_longest_training_has_epochs(plan: Plan, monkeypatch):
    monkeypatch.setattr(estimate, "call_seconds", lambda call, device: 1.0)
    network = teachers.untrained(plan.spec.teacher, plan.split)
    taught = [{"loss_weight": 0.5}]
    batches = len(plan.split.train) / 100
    wide = augmented(plan, Augment(flip=True, shift=4, views=2))  # as a plan has it of 2 epochs at most
    assert estimate.answers_seconds(wide, network, taught) == pytest.approx(2 * batches)
    whole = augmented(plan, Augment(flip=True, shift=4))
    assert estimate.answers_seconds(whole, network, taught) == pytest.approx(162 * batches)
    assert estimate.answers_seconds(wide, network, [{"loss_weight": 0.0}]) == 0


def test_a_teacher_and_answers_that_are_kept_cost_nothing(plan: Plan, teacher: teachers.Teacher):
    teacher.answers(plan.split.train)
    assert estimate.teacher_seconds(plan, teacher.network) == 0
    assert estimate.answers_seconds(plan, teacher.network, [{"loss_weight": 0.5}]) == 0
    fresh = plan.spec.teacher.model_copy(update={"seed": 99})
    other = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"teacher": fresh}))
    assert estimate.teacher_seconds(other, teacher.network) > 0
    assert estimate.answers_seconds(other, teacher.network, [{"loss_weight": 0.5}]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("augment", [Augment(), Augment(flip=True, shift=1)])
def test_the_parts_add_up_and_are_printed(plan: Plan, augment: Augment, capsys):
    found = estimate.estimate(augmented(plan, augment), Budget(trials=200))  # two train for less than is printed
    seconds = found["seconds"]
    assert seconds["training"] > 0
    assert seconds["scoring"] >= 0
    assert seconds["all"] == pytest.approx(sum(seconds.values()) - seconds["all"], abs=0.5)
    print_plan(found, as_json=False)
    printed = capsys.readouterr().out
    assert all(f"estimate  {part}" in printed for part in ("teacher", "answers", "training", "timing", "scoring"))
    assert "without pruning" in printed


@pytest.mark.slow
def test_the_training_follows_the_space(plan: Plan):
    small = plan.spec.space | {"width": [8, 16], "epochs": [1], "batch_size": [100, 200]}
    large = plan.spec.space | {"width": [900, 1200], "epochs": [20], "batch_size": [16]}
    found = []
    for space in (small, large):
        spec = plan.spec.model_copy(update={"space": space, "anchors": {}})
        found.append(estimate.parts(dataclasses.replace(plan, spec=spec), Budget(trials=10))["training"])
    assert found[1] > 20 * found[0]


def test_a_step_is_timed_on_no_more_images_than_a_processor_takes_in_seconds():
    heavy, light = estimate.Size(50, 10**7, 2.6e9, 1e6), estimate.Size(3, 10**4, 1e5, 1e3)
    cpu = torch.device("cpu")
    assert estimate.affordable(128, heavy, cpu) == int(estimate.MOST_OPERATIONS / 2.6e9)
    assert estimate.affordable(128, light, cpu) == 128
    assert estimate.affordable(1, heavy, cpu) == 2
    assert estimate.affordable(128, heavy, torch.device("cuda")) == 128
