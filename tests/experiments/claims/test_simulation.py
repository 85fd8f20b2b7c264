from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from fractions import Fraction

import numpy as np
import pytest

from kdsearch.experiments.claims import lemmas, simulation
from kdsearch.experiments.claims.lemmas import BITS, TIED
from kdsearch.experiments.claims.simulation import (
    BAYES,
    EMPIRICAL,
    FITTED,
    GAP,
    LARGE,
    MEMORISED,
    OWN,
    TWIN,
    Row,
    World,
    distilled_risks,
    draw,
    fit,
    lemma_one,
    lemma_two,
    make_world,
    simulate_errors,
    simulate_variances,
)


def in_floats(problem):
    return World(*(np.array(values, dtype=np.float64) for values in (problem.inputs, problem.labels, problem.losses)))


def by_quantity(rows):
    return {row.quantity: row for row in rows}


def generator():
    return np.random.default_rng(0)


def test_a_world_is_a_problem_with_log_losses():
    world = make_world(generator())
    assert world.labels.shape == world.losses.shape == (40, 10)
    assert world.inputs.sum() == pytest.approx(1)
    assert world.labels.sum(axis=1) == pytest.approx(1)
    assert np.exp(-world.losses).sum(axis=1) == pytest.approx(1)
    assert make_world(generator()).losses.tolist() == world.losses.tolist()


def test_a_worlds_risk_is_the_problems():
    assert in_floats(BITS).risk == pytest.approx(float(lemmas.true_risk(BITS)))


def test_samples_have_their_size_and_the_problems_frequencies():
    counts = draw(generator(), in_floats(BITS), 3, 20_000)
    assert (counts.sum(axis=(1, 2)) == 3).all()
    assert counts.mean(axis=0) / 3 == pytest.approx(np.array([[1 / 6, 1 / 12, 1 / 12], [0, 2 / 9, 4 / 9]]), abs=0.01)


@pytest.mark.parametrize("sample", [((0, 0), (0, 0), (0, 2)), ((0, 1), (1, 2), (1, 1))])
def test_teachers_without_smoothing_are_those_that_memorise(sample):
    counts = np.zeros((1, 2, 3))
    for x, y in sample:
        counts[0, x, y] += 1
    exact = np.array(lemmas.memorise(BITS, sample), dtype=np.float64)
    assert fit(counts, 0.0)[0] == pytest.approx(exact)
    risk = sum(BITS.losses[x][y] for x, y in sample) / len(sample)
    assert distilled_risks(in_floats(BITS), counts, fit(counts, 0.0)) == pytest.approx([float(risk)])


def test_smoothing_adds_to_every_count():
    assert fit(np.array([[[3.0, 1.0], [0.0, 0.0]]]), 1.0)[0] == pytest.approx(np.array([[4 / 6, 2 / 6], [0.5, 0.5]]))


def test_simulated_variances_are_the_enumerated_ones():
    rows = by_quantity(simulate_variances(generator(), in_floats(BITS), 2, 4000))
    full, soft = lemmas.variance(lemmas.empirical(BITS, 2)), lemmas.variance(lemmas.bayes_distilled(BITS, 2))
    exact = {EMPIRICAL: full, BAYES: soft, GAP: full - soft}
    assert {quantity: row.expected for quantity, row in rows.items()} == pytest.approx(
        {quantity: float(value) for quantity, value in exact.items()}
    )
    assert all(row.agrees and row.size == 2 for row in rows.values())
    assert rows[GAP].estimate == pytest.approx(rows[EMPIRICAL].estimate - rows[BAYES].estimate)


def test_without_a_label_that_matters_the_two_risks_are_one():
    gap = by_quantity(simulate_variances(generator(), in_floats(TIED), 5, 50))[GAP]
    assert (gap.estimate, gap.low, gap.high) == pytest.approx((0, 0, 0), abs=1e-15)


def test_simulated_errors_are_the_enumerated_ones():
    rows = by_quantity(simulate_errors(generator(), in_floats(BITS), 2, 4000))
    memorising, risk = lemmas.memorising_teachers(BITS, 2), lemmas.true_risk(BITS)
    as_if = lemmas.squared_error(lemmas.distilled(BITS, memorising, 2), risk)
    row = rows[MEMORISED]
    exact = float(lemmas.variance(lemmas.empirical(BITS, 2)))
    assert replace(row, expected=exact).agrees
    assert row.expected == pytest.approx(float(as_if), rel=0.05)
    assert row.bound == pytest.approx(float(lemmas.bound(BITS, memorising, 2).total), rel=0.05)


def test_an_input_that_never_occurs_does_not_raise_the_simulated_bound():
    world = in_floats(BITS)
    longer = World(
        np.append(world.inputs, 0), np.vstack([world.labels, [1, 0, 0]]), np.vstack([world.losses, [99] * 3])
    )
    bounds = [by_quantity(simulate_errors(generator(), each, 2, 500))[TWIN].bound for each in (world, longer)]
    assert bounds[1] == pytest.approx(bounds[0], rel=0.2)


@pytest.fixture(scope="module")
def errors():
    """Rows of simulate_errors for 30 examples, by quantity."""
    random = generator()
    return by_quantity(simulate_errors(random, make_world(random), 30, 1000))


@pytest.mark.parametrize("quantity", [LARGE, TWIN])
def test_teachers_of_other_examples_have_the_formulas_error_and_keep_the_bound(errors, quantity):
    assert errors[quantity].agrees
    assert errors[quantity].high < errors[quantity].bound


@pytest.mark.parametrize("quantity", [OWN, MEMORISED])
def test_teachers_of_the_same_examples_have_not_the_formulas_error(errors, quantity):
    assert not errors[quantity].agrees
    assert errors[quantity].high < errors[quantity].expected  # here they err less, since they are less biased on S


def test_a_twin_teacher_differs_from_the_samples_own_in_dependence_alone(errors):
    assert errors[OWN].expected == pytest.approx(errors[TWIN].expected, rel=0.05)
    assert errors[OWN].bound == pytest.approx(errors[TWIN].bound, rel=0.05)
    assert errors[OWN].high < errors[TWIN].low


def test_a_teacher_of_many_examples_errs_less_than_the_labels(errors):
    assert errors[LARGE].high < errors[MEMORISED].low  # which is the empirical risk


def test_an_interval_is_of_95_percent():
    hits = []
    world = in_floats(BITS)
    for seed in range(300):
        row = by_quantity(simulate_variances(np.random.default_rng(seed), world, 2, 300))[GAP]
        hits.append(row.low <= 25 / 216 <= row.high)
    assert 0.91 <= np.mean(hits) <= 0.98


def test_a_formula_agrees_within_4_standard_errors():
    row = Row("some", 1, estimate=10.0, low=10 - 1.959964, high=10 + 1.959964, expected=13.9)
    assert row.agrees
    assert not replace(row, expected=14.1).agrees
    assert not replace(row, expected=5.9).agrees


@pytest.fixture(scope="module")
def first():
    return lemma_one(0, problems=20, sizes=(10,), draws=500)


@pytest.fixture(scope="module")
def second():
    return lemma_two(0, problems=10, sizes=(10,), draws=500)


def test_lemma_1_holds(first):
    assert first.holds
    assert first.all_equal
    assert first.problems == 20
    assert 0 < first.ties < 20
    assert [(row.quantity, row.size) for row in first.rows] == [(EMPIRICAL, 10), (BAYES, 10), (GAP, 10)]
    assert first.bits[GAP] == first.bits["formula"] == Fraction(25, 216)
    assert first.tied[GAP] == 0


def test_lemma_2_holds_for_independent_teachers_and_not_for_fitted_ones(second):
    assert second.holds
    assert second.all_within
    assert second.all_equal
    assert 0.5 < second.closest <= 1
    assert second.exceeded
    assert [row.quantity for row in second.rows] == [LARGE, TWIN, *FITTED]
    assert second.bits["bound"] == Fraction(2419, 1944)
    zero_one, log_loss = second.fitted
    assert (zero_one["mean squared error"], zero_one["bound"]) == (Fraction(1, 4), Fraction(2, 9))
    assert (zero_one["variance of the distilled risk"], zero_one["formula"]) == (Fraction(1, 4), Fraction(1, 12))
    assert (log_loss["mean squared error"], log_loss["bound"]) == (Fraction(1, 4), Fraction(30, 121))


def test_evidence_is_the_same_for_the_same_seed(first):
    assert lemma_one(0, problems=20, sizes=(10,), draws=500) == first
    assert lemma_one(1, problems=20, sizes=(10,), draws=500) != first


def test_evidence_is_made_of_plain_values(first, second):
    def check(value):
        if is_dataclass(value):
            for field in fields(value):
                check(getattr(value, field.name))
        elif type(value) in (tuple, dict):
            for item in value.values() if type(value) is dict else value:
                check(item)
        else:
            assert type(value) in (str, int, float, bool, Fraction, type(None))

    check(first)
    check(second)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("predicted_gap", lambda problem, size: problem.variance(problem.soft_losses(problem.labels)) / size),
        ("is_label_irrelevant", lambda problem: False),
        ("true_risk", lambda problem: Fraction(0)),
    ],
)
def test_lemma_1_does_not_hold_by_a_wrong_formula(monkeypatch, name, wrong):
    monkeypatch.setattr(lemmas, name, wrong)
    found = lemma_one(0, problems=20, sizes=(), draws=2)
    assert not found.all_equal
    assert not found.holds


def test_lemma_1_does_not_hold_by_a_wrong_simulation(monkeypatch):
    right = simulation.draw
    monkeypatch.setattr(simulation, "draw", lambda random, world, size, draws: right(random, world, 2 * size, draws))
    found = lemma_one(0, problems=1, sizes=(10,), draws=500)
    assert found.all_equal
    assert not found.holds


def test_lemma_2_does_not_hold_by_a_bound_too_small(monkeypatch):
    right = lemmas.bound
    monkeypatch.setattr(
        lemmas,
        "bound",
        lambda problem, teachers, size: replace(right(problem, teachers, size), constant=Fraction(1, 9)),
    )
    found = lemma_two(0, problems=10, sizes=(), draws=2)
    assert not found.all_within
    assert not found.holds


def test_lemma_2_does_not_hold_by_teachers_fitted_on_the_sample(monkeypatch):
    monkeypatch.setattr(simulation, "FITTED", ())
    found = lemma_two(0, problems=1, sizes=(10,), draws=500)
    assert found.all_within
    assert not found.holds


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_both_lemmas_hold_in_full(seed):
    assert lemma_one(seed).holds
    second = lemma_two(seed)
    assert second.holds
    assert not any(row.agrees for row in second.rows if row.quantity in FITTED)
    assert not any(row.agrees and row.quantity == GAP for row in second.rows)
