from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from kdsearch import report
from kdsearch.errors import KdsearchError
from kdsearch.pruning.history import Evidence, History, continued, credited, encoded, read, stored_curve
from kdsearch.records import Attr

MAX2 = ["maximize", "maximize"]
COMPLETE, FAIL, PRUNED, RUNNING = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING
NAN = math.nan


def curve(accuracies, ratio, first=1):
    return {"0": [None, ratio], **{str(step): [a, ratio] for step, a in enumerate(accuracies, first)}}


def add(study, found, *, state=RUNNING, params=None, distributions=None):
    values = [0.5] * len(study.directions) if state == COMPLETE else None
    study.add_trial(
        create_trial(
            state=state,
            values=values,
            params=params or {},
            distributions=distributions or {},
            user_attrs={Attr.CURVE: found},
        )
    )


def study_of(*curves, directions=MAX2, state=RUNNING):
    study = optuna.create_study(directions=directions)
    for found in curves:
        add(study, found, state=state)
    return study


def updated(study, number=None):
    history = History()
    history.update(study, number)
    return history


def test_the_observed_objective_is_the_one_that_was_not_known_at_first():
    assert observed_of(curve([0.5], 3.0)) == 0
    assert observed_of({"0": [3.0, None], "1": [3.0, 0.5]}) == 1
    assert observed_of({"0": [None, None, None]}, {"0": [1.0, 2.0, None]}) == 2


def observed_of(*curves):
    evidence = Evidence()
    for number, seen in enumerate(curves):
        evidence.see(number, seen)
    return evidence.observed()


def test_the_observed_objective_is_the_one_that_changes_wherever_it_stands():
    assert observed_of({"1": [3.0, 0.5], "2": [3.0, 0.6]}) == 1
    assert observed_of({"1": [3.0, 0.5]}) is None  # nothing tells yet
    assert observed_of({"1": [3.0, 0.5], "2": [3.0, NAN]}, {"1": [2.0, 0.5], "2": [2.0, 0.7]}) == 1
    assert observed_of({"1": [0.5, None], "2": [0.6, 9.0]}) == 0  # a known one that came late
    assert observed_of({"0": [None, 3.0], "1": [0.5, 3.1], "2": [0.6, 3.2]}) == 0  # measured anew each time


def test_two_objectives_that_change_are_one_clear_error():
    with pytest.raises(KdsearchError, match=r"exactly one objective may change .* in trial 0, objective 1 in trial 1"):
        observed_of({"1": [0.5, 3.0], "2": [0.6, 3.0]}, {"1": [0.5, 3.0], "2": [0.5, 4.0]})


def test_a_lucky_checkpoint_is_credited_as_far_as_its_neighbours_bear_it_out():
    assert credited(np.array([0.5, 0.9, 0.6, 0.61])).tolist() == [0.5, 0.6, 0.6, pytest.approx(0.6)]
    assert credited(np.array([0.9, 0.5, 0.6])).tolist()[0] == 0.5
    assert credited(np.array([0.7])).tolist() == [0.7]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_a_curve_that_never_falls_is_credited_in_full(values):
    rising = np.sort(np.array(values))
    np.testing.assert_array_equal(credited(rising), rising)


def test_a_curve_holds_the_best_so_far_and_what_is_known():
    trial = create_trial(state=RUNNING, user_attrs={Attr.CURVE: curve([0.5, 0.4, 0.7], 3.0)})
    found = read(trial, np.array([1.0, -1.0]), 0)
    assert found.steps.tolist() == [1, 2, 3]
    fall = math.sqrt(0.1**2 / 2)  # root mean square of the drops: the last value's successor is not known
    assert found.best.tolist() == pytest.approx([0.4, 0.4, 0.7 - fall])
    assert found.reported == 0.7
    assert math.isnan(found.known[0])
    assert found.known[1] == -3.0


def test_the_best_of_an_objective_to_be_minimised_is_the_lowest():
    trial = create_trial(state=RUNNING, user_attrs={Attr.CURVE: curve([0.5, 0.4, 0.7], 3.0)})
    found = read(trial, np.array([-1.0, 1.0]), 0)
    assert found.best.tolist() == [-0.5, -0.5, -0.5]  # 0.4 stands alone
    assert found.reported == -0.4


def test_steps_are_in_the_order_of_their_numbers():
    trial = create_trial(state=RUNNING, user_attrs={Attr.CURVE: {"10": [0.6, 1.0], "9": [0.5, 1.0]}})
    assert read(trial, np.ones(2), 0).steps.tolist() == [9, 10]


@pytest.mark.parametrize("nothing", [NAN, math.inf, -math.inf, None])
def test_a_checkpoint_without_a_finite_value_is_left_out(nothing):
    trial = create_trial(state=RUNNING, user_attrs={Attr.CURVE: curve([nothing, 0.4, nothing], 3.0)})
    found = read(trial, np.ones(2), 0)
    assert (found.steps.tolist(), found.best.tolist()) == ([2], [0.4])


def test_a_known_objective_that_was_never_told_is_nan():
    trial = create_trial(state=RUNNING, user_attrs={Attr.CURVE: {"1": [0.5, NAN]}})
    assert np.isnan(read(trial, np.ones(2), 0).known).all()


@pytest.mark.parametrize(
    ("distribution", "value", "expected"),
    [
        (FloatDistribution(0.0, 10.0), 2.5, [0.25]),
        (FloatDistribution(0.01, 100.0, log=True), 1.0, [0.5]),
        (IntDistribution(1, 5), 4, [0.75]),
        (IntDistribution(1, 100, log=True), 10, [0.5]),
        (IntDistribution(7, 7), 7, [0.5]),
        (CategoricalDistribution([8, 10, 12]), 10, [0.5]),
        (CategoricalDistribution([12, 8, 10]), 12, [1.0]),  # by value, not by place
        (CategoricalDistribution([1, 10, 100]), 10, [0.5]),  # a factor of ten: by logarithm
        (CategoricalDistribution([0, 10, 100]), 10, [0.1]),
        (CategoricalDistribution([0.5]), 0.5, [0.5]),
        (CategoricalDistribution(["a", "b", "c"]), "b", [0.0, 0.5, 0.0]),
        (CategoricalDistribution(["a", 1]), 1, [0.0, 0.5]),
        (CategoricalDistribution([False, True]), True, [0.0, 0.5]),  # no numbers
        (FloatDistribution(0.0, 10.0), None, [0.5]),
        (IntDistribution(1, 100, log=True), None, [0.5]),
        (CategoricalDistribution([1, 2]), None, [0.5]),
        (CategoricalDistribution(["a", "b"]), None, [0.5, 0.5]),
    ],
)
def test_parameters_become_numbers_from_0_to_1(distribution, value, expected):
    assert encoded(distribution, value) == pytest.approx(expected)


@given(st.sampled_from(["a", "b", "c"]), st.sampled_from(["a", "b", "c"]))
def test_other_choices_lie_as_far_apart_as_the_ends_of_a_range(one, other):
    choices = CategoricalDistribution(["a", "b", "c"])
    distance = np.abs(np.subtract(encoded(choices, one), encoded(choices, other))).sum()
    assert distance == (one != other)


def test_a_parameter_keeps_the_distribution_first_seen():
    study, unit = study_of(), FloatDistribution(0.0, 1.0)
    for seen in ({"x": FloatDistribution(0.0, 10.0)}, {"x": FloatDistribution(0.0, 100.0), "y": unit}):
        add(study, curve([0.5], 3.0), params=dict.fromkeys(seen, 0.5), distributions=seen)
    assert updated(study).features([{"y": 0.25, "x": 5.0}]).tolist() == [[0.5, 0.25]]


def test_a_study_without_a_trial_or_a_report_has_no_curves():
    study = optuna.create_study(directions=MAX2)
    assert len(updated(study).curves()) == 0
    study.add_trial(create_trial(state=RUNNING))
    history = updated(study, 0)
    assert (len(history.curves()), history.own, history.observed) == (0, None, None)


def test_curves_are_stacked_on_every_step_at_which_something_was_observed():
    history = updated(study_of(curve([0.4, 0.5, 0.7], 3.0), {"2": [0.8, 4.0], "7": [0.9, 4.0]}))
    assert history.grid.tolist() == [1, 2, 3, 7]
    stack = history.curves()
    assert stack.number.tolist() == [0, 1]
    assert stack.last.tolist() == [3, 7]
    np.testing.assert_array_equal(stack.best, [[0.4, 0.5, 0.7, NAN], [NAN, 0.8, 0.8, 0.9]])
    assert stack.points.tolist() == [[0.7, 3.0], [0.9, 4.0]]


def test_the_grid_grows_and_old_curves_with_it():
    study = study_of(curve([0.5, 0.6], 3.0), state=PRUNED)
    history = updated(study)
    add(study, curve([0.1, 0.2, 0.3], 4.0), state=COMPLETE)
    history.update(study)
    assert history.grid.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(history.ended.best, [[0.5, 0.6, NAN], [0.1, 0.2, 0.3]])


def test_new_parameters_are_in_the_middle_for_trials_that_lack_them():
    study = optuna.create_study(directions=MAX2)
    unit = FloatDistribution(0.0, 1.0)
    add(study, curve([0.5], 3.0), state=COMPLETE, params={"x": 0.25}, distributions={"x": unit})
    history = updated(study)
    assert history.ended.features.tolist() == [[0.25]]
    add(study, curve([0.5], 3.0), params={"x": 1.0, "y": 0.0}, distributions={"x": unit, "y": unit})
    history.update(study)
    assert history.curves().features.tolist() == [[0.25, 0.5], [1.0, 0.0]]


def test_ended_and_running_trials_are_told_apart_and_failed_ones_left_out():
    study = optuna.create_study(directions=MAX2)
    for state in (COMPLETE, FAIL, RUNNING, PRUNED):
        add(study, curve([0.5], 3.0), state=state)
    study.enqueue_trial({})
    history = updated(study)
    assert history.ended.number.tolist() == [0, 3]
    assert history.running.number.tolist() == [2]
    assert history.curves().number.tolist() == [0, 3, 2]


def test_the_trial_asked_about_is_in_neither():
    study = study_of(curve([0.5], 3.0), curve([0.6], 4.0))
    history = updated(study, 1)
    assert history.curves().number.tolist() == [0]
    assert history.own is not None
    assert history.own.number == 1
    history.update(study, 0)
    assert history.curves().number.tolist() == [1]
    assert history.own.number == 0
    history.update(study)
    assert history.own is None


def test_a_trial_without_a_known_objective_or_a_checkpoint_has_no_curve_to_learn_from():
    history = updated(study_of({"1": [0.5, None]}, {"1": [0.5, NAN]}, curve([], 3.0), curve([NAN], 3.0)))
    assert len(history.curves()) == 0


def test_directions_are_turned_so_that_more_is_better():
    history = updated(study_of(curve([0.5, 0.4], 3.0), directions=["minimize", "maximize"]))
    assert history.curves().points.tolist() == [[-0.4, 3.0]]


numbers = st.integers(0, 3)
operations = st.one_of(
    st.tuples(st.just("ask"), numbers),
    st.tuples(st.just("report"), numbers, st.integers(0, 4).map(lambda i: i / 4) | st.just(NAN)),
    st.tuples(st.just("report"), numbers, st.integers(0, 4).map(lambda i: i / 4)),
    st.tuples(st.just("suggest"), numbers, st.sampled_from(["unit", "factor", "kind"])),
    st.tuples(st.just("end"), numbers, st.sampled_from([PRUNED, COMPLETE, FAIL])),
    st.tuples(st.just("look"), st.booleans()),
)


def suggest(trial, name):
    if name == "unit":
        trial.suggest_float(name, 0.0, 1.0)
    elif name == "factor":
        trial.suggest_int(name, 1, 100, log=True)
    else:
        trial.suggest_categorical(name, ["a", "b", "c"])


def columns(history):
    """Where each parameter's columns lie."""
    found, start = {}, 0
    for name, distribution in history.distributions.items():
        width = len(encoded(distribution, None))
        found[name] = list(range(start, start + width))
        start += width
    return found


def assert_alike(kept, fresh):
    """All that is known is the same; rows and columns may be in another order.

    A trial that has failed since may have left steps and parameters that no other trial has.
    """
    assert kept.observed == fresh.observed
    assert set(fresh.grid) <= set(kept.grid)
    same_steps = np.isin(kept.grid, fresh.grid)
    where, elsewhere = columns(kept), columns(fresh)
    for one, other in ((kept.ended, fresh.ended), (kept.running, fresh.running)):
        rows, others = np.argsort(one.number), np.argsort(other.number)
        for name in ("number", "last", "points"):
            np.testing.assert_array_equal(getattr(one, name)[rows], getattr(other, name)[others])
        if len(one):
            np.testing.assert_array_equal(one.best[rows][:, same_steps], other.best[others])
            for name in elsewhere:
                np.testing.assert_array_equal(
                    one.features[rows][:, where[name]], other.features[others][:, elsewhere[name]]
                )
    assert (kept.own is None) == (fresh.own is None)
    if kept.own is not None and fresh.own is not None:
        assert kept.own.number == fresh.own.number
        np.testing.assert_array_equal(kept.own.best, fresh.own.best)
        np.testing.assert_array_equal(kept.own.known, fresh.own.known)


@given(st.lists(operations, max_size=30))
def test_reading_what_is_new_is_reading_everything_anew(operations):
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0))
    kept = History()
    running: list[optuna.Trial] = []
    for operation, *arguments in [*operations, ("look", False), ("look", True)]:
        if operation == "ask":
            running.append(study.ask())
            report(running[-1], (None, 2.0 + arguments[0]), 0)
        elif operation == "look":
            number = running[0].number if arguments[0] and running else None
            kept.update(study, number)
            assert_alike(kept, updated(study, number))
        elif running:
            trial = running[arguments[0] % len(running)]
            if operation == "report":
                steps = len(stored_curve(trial)) + arguments[0]  # some are skipped
                latest = max(map(int, stored_curve(trial)))
                report(trial, (arguments[1], 2.0 + arguments[0]), max(steps, latest + 1))
            elif operation == "suggest":
                suggest(trial, arguments[1])
            else:
                study.tell(trial, (0.5, 1.0) if arguments[1] == COMPLETE else None, arguments[1])
                running.remove(trial)


def test_what_nobody_could_tell_the_history_of_is_read_anew_when_it_is_known():
    study = study_of({"1": [3.0, 0.5]}, {"1": [4.0, 0.6]})
    history = updated(study)
    assert (history.observed, len(history.curves())) == (None, 0)
    add(study, {"1": [5.0, 0.6], "2": [5.0, 0.7]})
    history.update(study)
    assert history.observed == 1
    assert history.curves().points.tolist() == [[3.0, 0.5], [4.0, 0.6], [5.0, 0.7]]


def test_a_user_attribute_of_somebody_else_is_no_curve():
    study = optuna.create_study(directions=MAX2)
    for other in ("a string", [1, 2], {"1": "x"}, {"1": [0.5, 0.6, 0.7], "2": [0.1]}):
        study.add_trial(create_trial(state=RUNNING, user_attrs={Attr.CURVE: other}))
    assert len(updated(study).curves()) == 0


def test_infeasible_trials_may_not_stand_on_the_front():
    study = optuna.create_study(directions=MAX2)
    for limits in (None, [-1.0], [0.0, 1.0]):
        attrs = {} if limits is None else {"constraints": limits}
        seen = {Attr.CURVE: curve([0.5], 3.0)}
        for state in (PRUNED, RUNNING):
            study.add_trial(create_trial(state=state, user_attrs=seen, system_attrs=attrs))
    history = updated(study)
    assert history.ended.feasible.tolist() == [True, True, False]
    assert history.running.feasible.tolist() == [False, True, False]  # the first one's are not known yet


def test_an_ended_trial_gives_way_to_the_one_that_goes_on_with_it():
    study = optuna.create_study(directions=MAX2)
    first = study.ask({"x": FloatDistribution(0, 1)})
    _report(first, [0.1, 0.2])
    study.tell(first, state=PRUNED)
    history = History()

    def numbers():
        history.update(study)
        return history.ended.number.tolist(), history.running.number.tolist()

    assert numbers() == ([0], [])
    second = study.ask({"x": FloatDistribution(0, 1)})
    second.set_user_attr(Attr.RESUMES, 0)
    assert numbers() == ([0], [])  # it has no curve yet
    _report(second, [0.1, 0.2, 0.5])
    assert numbers() == ([], [1])
    study.tell(second, state=FAIL)
    assert numbers() == ([0], [])
    third = study.ask({"x": FloatDistribution(0, 1)})
    third.set_user_attr(Attr.RESUMES, 0)
    _report(third, [0.1, 0.2, 0.4])
    study.tell(third, state=PRUNED)
    assert numbers() == ([2], [])
    fresh = History()
    fresh.update(study)
    assert fresh.ended.number.tolist() == [2]
    assert history.curves().points[:, 0].max() == pytest.approx(0.4)


def test_an_ended_trial_can_be_asked_about():
    study = optuna.create_study(directions=MAX2)
    for values in ([0.1, 0.2], [0.1, 0.3, 0.4], [0.1, 0.2, 0.3]):
        trial = study.ask({"x": FloatDistribution(0, 1)})
        _report(trial, values)
        study.tell(trial, state=PRUNED)
    history = History()
    history.update(study)
    view = history.about(1)
    assert view.own is not None
    assert view.own.best.tolist() == [0.1, 0.3, 0.4]
    assert view.curves().number.tolist() == [0, 2]
    assert history.curves().number.tolist() == [0, 1, 2]
    assert history.own is None


@pytest.mark.parametrize("number", [True, "0", 1, 2, -1, 0.0, None])
def test_a_trial_goes_on_with_an_earlier_one_only(number):
    attrs = {Attr.CURVE: {"1": [0.1, 2.0]}, Attr.RESUMES: number}
    trial = create_trial(state=PRUNED, user_attrs=attrs)
    trial.number = 1
    assert continued(trial) is None


def test_a_user_attribute_of_somebody_else_resumes_nothing():
    trial = create_trial(state=PRUNED, user_attrs={Attr.RESUMES: 0})
    trial.number = 1
    assert continued(trial) is None


def _report(trial, values):
    for step, value in enumerate(values, 1):
        report(trial, (value, 2.0), step, prefix="")
