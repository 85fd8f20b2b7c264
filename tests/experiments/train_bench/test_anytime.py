from __future__ import annotations

import json
import statistics

import pytest

from kdsearch.errors import KdsearchError
from kdsearch.experiments.train_bench import anytime
from kdsearch.experiments.train_bench.anytime import ONE_CYCLE, RECIPES, Options, Outcome
from kdsearch.reporting.pages import document
from kdsearch.search.plan import Plan
from kdsearch.spec import Recipe

LENGTHS = [1, 3]


@pytest.fixture(scope="module")
def options(plan: Plan) -> Options:
    config = anytime.student_config(plan.spec, '{"width": 50, "loss_weight": 0.0}')
    return Options(config=config, lengths=LENGTHS, rates=[0.3, 1.0], seeds=[0, 1])


@pytest.fixture(scope="module")
def found(plan: Plan, options: Options) -> list[Outcome]:
    return anytime.measure(plan, options)


def test_every_recipe_is_seen_at_every_length_rate_and_seed(found, options):
    assert {(one.recipe, one.rate, one.seed, one.epochs) for one in found} == {
        (name, rate, seed, n) for name in RECIPES for rate in options.rates for seed in options.seeds for n in LENGTHS
    }
    assert len(found) == len(RECIPES) * 2 * 2 * 2
    assert all(0.05 < one.accuracy <= 1 and 0.05 < one.test_accuracy <= 1 for one in found)


def test_longer_trainings_are_better_and_recipes_differ(found):
    for name in RECIPES:
        assert statistics.fmean(anytime.scores(found, name, 3)) > statistics.fmean(anytime.scores(found, name, 1))
    assert len({tuple(anytime.scores(found, name, 3)) for name in RECIPES}) == len(RECIPES)


def made(recipe: str, rate: float, epochs: int, accuracy: float) -> Outcome:
    return Outcome(recipe, rate, 0, epochs, accuracy, accuracy - 0.1)


def test_the_rate_and_the_recipe_are_chosen_on_validation_over_all_lengths():
    found = [
        made(name, rate, n, share + 0.1 * n)
        for name, rate, share in [
            ("last weights", 1, 0.1), ("last weights", 3, 0.2), ("averaged", 1, 0.4), ("averaged", 3, 0.3),
            ("schedule-free", 1, 0.1), ("schedule-free", 3, 0.1), (ONE_CYCLE, 1, 0.5), (ONE_CYCLE, 3, 0.6),
        ]
        for n in (1, 2)
    ]  # fmt: skip
    assert [anytime.best_rate(found, name) for name in RECIPES] == [3, 1, 1, 3]
    assert anytime.best_anytime(found) == "averaged"
    assert anytime.scores(found, "averaged", 2) == pytest.approx([0.5])


def test_recipes_change_what_they_are_named_after_and_nothing_else():
    base = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, averaging=1.0)
    made = {name: anytime.recipe_for(name, base, 0.5) for name in RECIPES}
    assert {name: recipe.schedule for name, recipe in made.items()} == {
        "last weights": "constant", "averaged": "constant", "schedule-free": "constant", ONE_CYCLE: "onecycle",
    }  # fmt: skip
    assert [recipe.averaging for recipe in made.values()] == [None, anytime.POWER, None, None]
    assert made["schedule-free"].optimizer == "schedulefree"
    assert made["schedule-free"].lr == pytest.approx(0.5)
    assert {recipe.lr for name, recipe in made.items() if name != "schedule-free"} == {0.05}
    assert {recipe.weight_decay for recipe in made.values()} == {5e-4}


def test_a_training_that_does_not_stay_finite_counts_as_nothing(plan, options):
    found = anytime.measure(plan, Options(config=options.config, lengths=[2], rates=[1e30], seeds=[0]))
    assert {one.test_accuracy for one in found if one.recipe == "averaged"} == {0.0}


def test_the_page_holds_the_figures(found, options, plan):
    result = anytime.result(found, options, plan, command="kdsearch bench recipes")
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    report = anytime.report(found, options, result)
    text = document.markdown(report)
    for name in RECIPES:
        assert f"{100 * result['recipes'][name]['test_accuracy']['3']:.2f}" in text
    assert result["best"] in report.verdict
    assert result["best"] != ONE_CYCLE
    assert "width 50" in text
    lines = {trace.name: list(trace.y) for trace in anytime.figure(found, options).data}
    assert lines.keys() == RECIPES.keys()
    expected = [100 * statistics.fmean(anytime.scores(found, "averaged", n)) for n in LENGTHS]
    assert lines["averaged"] == pytest.approx(expected, abs=1e-3)
    assert anytime.text(found, options, result).count("\n") == len(RECIPES)


@pytest.mark.parametrize(("given", "rule"), [
    ("m99", "must be an anchor"), ("[1]", "must be an anchor"), ('{"width": 7}', "must lie in the study's space"),
    ('{"depth": 7}', "depth = 7"),
])  # fmt: skip
def test_a_student_that_is_none_is_refused(plan, given, rule):
    with pytest.raises(KdsearchError, match=rule):
        anytime.student_config(plan.spec, given)


def test_a_student_without_anchors_has_every_key_that_has_an_effect(plan):
    bare = plan.spec.model_copy(update={"anchors": {}})
    with pytest.raises(KdsearchError, match=r"every dimension .*\(got no batch_size, loss_weight, temperature\)"):
        anytime.student_config(bare, '{"width": 50}')
    plain = {"width": 50, "batch_size": 32, "loss_weight": 0.0}
    assert anytime.student_config(bare, json.dumps(plain)) == plain


def test_students_are_anchors_or_change_one(plan):
    first = next(iter(plan.spec.anchors.values())).config
    assert anytime.student_config(plan.spec, None) == first
    assert anytime.student_config(plan.spec, "m2") == plan.spec.anchors["m2"].config
    assert anytime.student_config(plan.spec, '{"width": 8}') == {**first, "width": 8}


@pytest.mark.parametrize("changes", [{"lengths": [10**9]}, {"rates": [1e300]}])
def test_more_than_a_training_can_take_is_refused(plan, options, changes):
    with pytest.raises(KdsearchError, match=r"must be at most 1e\+"):
        anytime.measure(plan, Options(**{**vars(options), **changes}))


@pytest.mark.parametrize("changes", [{"lengths": []}, {"lengths": [0, 1]}, {"rates": [-1.0]}])
def test_nothing_to_compare_is_refused(plan, options, changes):
    with pytest.raises(KdsearchError, match="must be numbers above 0"):
        anytime.measure(plan, Options(**{**vars(options), **changes}))
