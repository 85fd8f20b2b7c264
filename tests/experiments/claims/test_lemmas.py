from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch.experiments.claims.lemmas import (
    BITS,
    BITS_TEACHERS,
    COINS_LOG_LOSS,
    COINS_ZERO_ONE,
    TIED,
    Problem,
    bayes_distilled,
    bound,
    coins,
    distilled,
    empirical,
    fitted,
    independent_variance,
    is_label_irrelevant,
    mean,
    memorise,
    memorising_teachers,
    predicted_gap,
    random_problem,
    samples,
    squared_error,
    table,
    true_risk,
    variance,
)

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
few = st.fractions(-3, 3, max_denominator=3)


def chances(count):
    weights = st.lists(st.integers(0, 3), min_size=count, max_size=count).filter(any)  # zeros are frequent
    return weights.map(lambda found: tuple(Fraction(weight, sum(found)) for weight in found))


@st.composite
def problems(draw, most_inputs=3):
    inputs, labels = draw(st.integers(1, most_inputs)), draw(st.integers(2, 3))
    losses = st.tuples(*[st.tuples(*[few] * labels)] * inputs)
    return Problem(draw(chances(inputs)), draw(st.tuples(*[chances(labels)] * inputs)), draw(losses))


@st.composite
def taught(draw):
    """A problem, and 1 to 3 teachers with their probabilities."""
    problem = draw(problems())
    tables = st.tuples(*[chances(len(problem.labels[0]))] * len(problem.inputs))
    count = draw(st.integers(1, 3))
    return problem, list(zip(draw(chances(count)), draw(st.tuples(*[tables] * count)), strict=True))


sizes = st.integers(1, 3)


def error(problem, teachers, size):
    """E[Delta^2] for independent teachers."""
    return squared_error(distilled(problem, teachers, size), true_risk(problem))


def error_if_fitted(problem, size):
    return squared_error(fitted(problem, size), true_risk(problem))


def bound_if_fitted(problem, size):
    return bound(problem, memorising_teachers(problem, size), size).total


@settings(max_examples=20)
@given(problems(), sizes)
def test_the_variances_differ_by_the_labels_variance_given_the_input(problem, size):
    full, soft = empirical(problem, size), bayes_distilled(problem, size)
    assert mean(full) == mean(soft) == true_risk(problem)
    assert variance(full) - variance(soft) == predicted_gap(problem, size) >= 0


@given(problems())
def test_the_gap_is_zero_if_and_only_if_no_label_matters(problem):
    assert (variance(empirical(problem, 1)) == variance(bayes_distilled(problem, 1))) == is_label_irrelevant(problem)


def test_a_worked_example_of_lemma_1():
    # R: (1/3)(3/2) + (2/3)(4/3); Var_{y|x} l: 1/4 and 2/9; p*' l: 3/2 and 4/3
    assert true_risk(BITS) == Fraction(25, 18)
    assert predicted_gap(BITS, 2) == (THIRD * Fraction(1, 4) + 2 * THIRD * Fraction(2, 9)) / 2 == Fraction(25, 216)
    assert variance(empirical(BITS, 2)) == Fraction(77, 648)
    assert variance(bayes_distilled(BITS, 2)) == Fraction(1, 324)
    assert not is_label_irrelevant(BITS)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_formulas_other_than_the_mean_of_the_conditional_variances_are_wrong(size):
    gap = variance(empirical(BITS, size)) - variance(bayes_distilled(BITS, size))
    between = BITS.variance(BITS.soft_losses(BITS.labels)) / size
    assert gap == predicted_gap(BITS, size)
    assert gap != between  # Var_x of the mean over labels
    assert gap != between + predicted_gap(BITS, size)  # Var over examples (x, y)
    assert gap != predicted_gap(BITS, size + 1)


def test_labels_that_lose_the_same_leave_no_gap():
    assert is_label_irrelevant(TIED)
    assert predicted_gap(TIED, 2) == 0
    assert variance(empirical(TIED, 2)) == variance(bayes_distilled(TIED, 2)) == Fraction(1, 8)
    matters = replace(TIED, losses=table([[2, 3, 1], [1, 2, 3], [1, 2, 3]]))
    assert not is_label_irrelevant(matters)
    assert variance(empirical(matters, 2)) > variance(bayes_distilled(matters, 2))


@settings(max_examples=30)
@given(problems(most_inputs=2), st.integers(0, 1))
def test_labels_that_the_input_determines_leave_no_gap(problem, label):
    certain = tuple(Fraction(int(y == label)) for y in range(len(problem.labels[0])))
    known = replace(problem, labels=(certain,) * len(problem.inputs))
    assert is_label_irrelevant(known)
    assert variance(empirical(known, 2)) == variance(bayes_distilled(known, 2))


@settings(max_examples=20)
@given(taught(), chances(3), st.tuples(few, few, few))
def test_an_input_that_never_occurs_changes_nothing(case, labels, losses):
    problem, teachers = case
    classes = len(problem.labels[0])
    losses = tuple(100 + loss for loss in losses)  # as a supremum it would raise the bound's constant
    row = (Fraction(1), Fraction(0), Fraction(0))[:classes] if classes < 3 else labels
    longer = Problem((*problem.inputs, Fraction(0)), (*problem.labels, row), (*problem.losses, losses[:classes]))
    apart = [(chance, (*rows, row[::-1])) for chance, rows in teachers]
    assert true_risk(longer) == true_risk(problem)
    assert is_label_irrelevant(longer) == is_label_irrelevant(problem)
    assert sorted(empirical(longer, 1)) == sorted(empirical(problem, 1))
    assert predicted_gap(longer, 1) == predicted_gap(problem, 1)
    assert sorted(distilled(longer, apart, 1)) == sorted(distilled(problem, teachers, 1))
    assert bound(longer, apart, 1) == bound(problem, teachers, 1)


@settings(max_examples=30)
@given(taught(), sizes)
def test_lemma_2_bounds_the_squared_error_of_independent_teachers(case, size):
    problem, teachers = case
    assert error(problem, teachers, size) <= bound(problem, teachers, size).total


@settings(max_examples=30)
@given(taught(), sizes)
def test_the_variance_under_independent_teachers_is_that_of_the_sample_and_that_of_the_teacher(case, size):
    problem, teachers = case
    assert variance(distilled(problem, teachers, size)) == independent_variance(problem, teachers, size)


def test_a_worked_example_of_lemma_2():
    parts = bound(BITS, BITS_TEACHERS, 2)
    # p_t' l: (1, 4/3) and (5/3, 5/3), so that Var_x is 2/81 and 0
    assert parts.variance == Fraction(2, 3) * Fraction(2, 81) / 2
    assert parts.constant == 9
    assert (parts.bias, parts.spread) == (Fraction(107, 1944), Fraction(20, 243))
    assert parts.total == Fraction(2419, 1944)
    assert error(BITS, BITS_TEACHERS, 2) == Fraction(17, 324)
    assert variance(distilled(BITS, BITS_TEACHERS, 2)) == Fraction(38, 729)


SIGNED = Problem((Fraction(1),), table([[HALF, HALF]]), table([[1, -1]]))
SURE = [(Fraction(1), table([[1, 0]]))]
FICKLE = [(HALF, table([[1, 0]])), (HALF, table([[0, 1]]))]
KNOWING = [(Fraction(1), BITS.labels)]


@pytest.mark.parametrize(
    ("problem", "teachers", "missing"),
    [(BITS, KNOWING, "variance"), (SIGNED, SURE, "bias"), (SIGNED, FICKLE, "spread"), (SIGNED, SURE, "constant")],
)
def test_every_part_of_the_bound_is_needed_and_none_can_be_smaller(problem, teachers, missing):
    parts = bound(problem, teachers, 2)
    assert error(problem, teachers, 2) == parts.total
    smaller = replace(parts, **{missing: getattr(parts, missing) * Fraction(99, 100)})
    assert error(problem, teachers, 2) > smaller.total


@settings(max_examples=30)
@given(problems(), st.integers(1, 2))
def test_a_teacher_that_memorises_the_sample_distils_the_empirical_risk(problem, size):
    assert fitted(problem, size) == empirical(problem, size)


@settings(max_examples=30)
@given(problems(most_inputs=2), st.integers(1, 2))
def test_teachers_that_memorise_are_a_distribution(problem, size):
    teachers = memorising_teachers(problem, size)
    assert sum(chance for chance, _ in teachers) == 1
    assert len({rows for _, rows in teachers}) == len(teachers)
    assert error(problem, teachers, size) <= bound(problem, teachers, size).total  # of another sample than S


def test_memorising_takes_frequencies_and_is_uniform_where_it_has_seen_nothing():
    assert memorise(BITS, ((0, 0), (0, 0), (0, 2))) == table([["2/3", 0, "1/3"], ["1/3", "1/3", "1/3"]])


@pytest.mark.parametrize("inputs", [2, 3, 7])
def test_a_memorised_sample_breaks_the_identity_of_variances_by_the_number_of_inputs(inputs):
    problem = coins(inputs, (0, 1))
    assert variance(fitted(problem, 1)) == Fraction(1, 4)
    assert independent_variance(problem, memorising_teachers(problem, 1), 1) == Fraction(1, 4 * inputs)


def test_the_identity_of_variances_can_err_to_the_other_side_too():
    certain = replace(BITS, labels=table([[0, 1, 0], [0, 0, 1]]), losses=table([[9, 1, 9], [9, 9, 1]]))
    assert variance(fitted(certain, 1)) == 0  # f is right, and so is the teacher at the input in S alone
    # p_t' l is 1 at that input and 19/3 at the other
    within, between = Fraction(2, 9) * Fraction(16, 3) ** 2, Fraction(2, 9) * Fraction(16, 9) ** 2
    assert independent_variance(certain, memorising_teachers(certain, 1), 1) == within + between


@pytest.mark.parametrize("inputs", [1, 2, 3, 4])
def test_a_memorised_sample_exceeds_the_bound_from_three_inputs_on_for_the_0_1_loss(inputs):
    problem = coins(inputs, (0, 1))
    assert error_if_fitted(problem, 1) == Fraction(1, 4)
    assert bound_if_fitted(problem, 1) == Fraction(3, 4 * inputs) - Fraction(1, 4 * inputs**2)
    assert (error_if_fitted(problem, 1) > bound_if_fitted(problem, 1)) == (inputs >= 3)


def test_the_named_problems_exceed_the_bound():
    assert (error_if_fitted(COINS_ZERO_ONE, 1), bound_if_fitted(COINS_ZERO_ONE, 1)) == (Fraction(1, 4), Fraction(2, 9))
    assert (error_if_fitted(COINS_LOG_LOSS, 1), bound_if_fitted(COINS_LOG_LOSS, 1)) == (
        Fraction(1, 4),
        Fraction(30, 121),
    )
    for problem in (COINS_ZERO_ONE, COINS_LOG_LOSS):  # taught by another sample, none does
        teachers = memorising_teachers(problem, 1)
        assert error(problem, teachers, 1) < bound(problem, teachers, 1).total


def test_the_losses_of_the_log_loss_problem_are_a_softmaxs():
    golden = (1 + 5**0.5) / 2
    assert golden**-1 + golden**-2 == pytest.approx(1, abs=1e-15)
    assert COINS_LOG_LOSS.losses[0] == (1, 2)


def test_two_examples_can_exceed_the_bound_too():
    problem = coins(5, (1, -1))
    assert (error_if_fitted(problem, 2), bound_if_fitted(problem, 2)) == (HALF, Fraction(119, 250))


@settings(max_examples=30)
@given(problems(most_inputs=1), st.integers(1, 3))
def test_a_single_input_never_exceeds_the_bound(problem, size):
    # E[Delta^2] is l' C l / N and the bound |l|^2 tr C / N, for C the covariance of one label's indicator
    assert error_if_fitted(problem, size) <= bound_if_fitted(problem, size)


def test_the_samples_are_all_of_them():
    found = {sample: chance for chance, sample in samples(BITS, 2)}
    assert sum(found.values()) == 1
    assert len(found) == 5**2  # of six examples one cannot occur
    assert found[(0, 1), (1, 2)] == THIRD / 4 * Fraction(2, 3) * Fraction(2, 3)


def test_random_problems_are_problems_of_every_kind():
    source = random.Random(0)
    found = [random_problem(source) for _ in range(300)]
    shapes = {(len(problem.inputs), len(problem.labels[0]), len(teachers)) for problem, teachers in found}
    assert shapes == set(product((1, 2, 3), (2, 3), (1, 2, 3)))
    assert 0 < sum(is_label_irrelevant(problem) for problem, _ in found) < 150
    assert any(0 in problem.inputs for problem, _ in found)
    for problem, teachers in found[:5]:
        distilled(problem, teachers, 1)  # refuses what is no distribution


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": (HALF, THIRD)}, r"inputs' probabilities must sum to 1 \(got 5/6\)"),
        ({"inputs": (Fraction(3, 2), -HALF)}, r"must not be negative \(got -1/2\)"),
        ({"inputs": (0.5, 0.5)}, "must be fractions"),
        ({"inputs": ()}, "must sum to 1"),
        ({"labels": ()}, r"p\* must have 2 rows of 0 labels"),
        ({"labels": table([[1, 0, 0]])}, r"p\* must have 2 rows of 3 labels \(got rows of \[3\]\)"),
        ({"labels": table([[1, 0, 0], ["1/2", 0, 0]])}, r"p\* at input 1 must sum to 1 \(got 1/2\)"),
        ({"losses": table([[1, 2, 3], [1, 2]])}, r"the losses must have 2 rows of 3 labels \(got rows of \[3, 2\]\)"),
        ({"losses": ((0.5,) * 3,) * 2}, "the losses must be fractions"),
    ],
)
def test_what_is_no_problem_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(BITS, **changes)


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ([], "teachers' probabilities must sum to 1"),
        ([(HALF, BITS.labels)], r"teachers' probabilities must sum to 1 \(got 1/2\)"),
        ([(Fraction(1), table([[1, 0, 0]]))], "a teacher must have 2 rows of 3 labels"),
        ([(Fraction(1), table([[1, 0, 0], [1, 1, 0]]))], r"a teacher at input 1 must sum to 1 \(got 2\)"),
    ],
)
def test_what_are_no_teachers_is_refused(teachers, message):
    for judge in (distilled, bound, independent_variance):
        with pytest.raises(ValueError, match=message):
            judge(BITS, teachers, 1)


def test_an_empty_sample_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        list(samples(BITS, 0))
