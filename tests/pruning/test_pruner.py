from __future__ import annotations

import math
import pickle
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.distributions import IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import TrialState, create_trial

from kdsearch import pareto, report, should_prune, should_stop
from kdsearch.errors import KdsearchError
from kdsearch.pruning import forecast
from kdsearch.pruning.history import History
from kdsearch.pruning.pruner import NAMED_BY, ParetoPruner, drawn
from kdsearch.pruning.scale import make_scale
from kdsearch.records import Attr
from kdsearch.search.sampling import samplers

MAX2 = ["maximize", "maximize"]
COMPLETE, FAIL, PRUNED, RUNNING = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING
NAN = math.nan


def add(study, accuracies, *known, state=RUNNING, first=1, every=1, attrs=None, epochs=None):
    """A trial with its accuracy after each epoch and what is known beforehand."""
    curve = {"0": [None, *known]} if first else {}
    curve |= {str(first + every * i): [accuracy, *known] for i, accuracy in enumerate(accuracies)}
    study.add_trial(
        create_trial(
            state=state,
            values=[max(accuracies), *known] if state == COMPLETE else None,
            params={} if epochs is None else {"epochs": epochs},
            distributions={} if epochs is None else {"epochs": IntDistribution(1, 50)},
            user_attrs={Attr.CURVE: curve, **(attrs or {})},
        )
    )


def study_of(*trials, directions=MAX2, **options):
    """Of (accuracies, known objective, ...) tuples."""
    study = optuna.create_study(directions=directions)
    for trial in trials:
        add(study, *trial, **options)
    return study


def verdict(study, number=-1, **options):
    return ParetoPruner(**{"audit": 0} | options).verdict(study, study.get_trials(deepcopy=False)[number])


def action(study, number=-1, **options):
    return verdict(study, number, **options).action


def actions(study, **options):
    """What a pruner of its own says of each trial."""
    return [action(study, number, **options) for number in range(len(study.get_trials()))]


LEARNS = ([0.5, 0.7, 0.8, 0.84], 10.0), ([0.5, 0.72, 0.81, 0.85], 10.0)  # two that were trained to the end


def test_a_trial_is_hopeless_when_it_is_dominated_and_forecast_to_stay_so():
    found = verdict(study_of(*LEARNS, ([0.1], 5.0)))
    assert found.action == "prune"
    assert found.reason is not None
    assert (found.reason["step"], found.reason["at"], found.reason["trials"]) == (1, 4, [0, 1])
    assert 0.1 < found.reason["forecast"] < 0.84
    assert found.reason["reason"].startswith("at step 1, it may hope for 0.8")
    assert found.reason["reason"].endswith("by step 4, which would not beat trial 0, 1")


def test_a_late_bloomer_goes_on_if_those_like_it_came_to_the_front_later():
    assert action(study_of(*LEARNS, ([0.52], 10.0))) == "go"  # dominated as yet
    assert action(study_of(*LEARNS, ([0.3], 30.0))) == "go"


def test_a_trial_on_the_front_that_has_levelled_out_ends_there():
    level = ([0.04] * 4, 10.0), ([0.03] * 4, 20.0)
    for accuracy in np.linspace(0.05, 0.95, 19).tolist():
        found = verdict(study_of(*level, ([accuracy], 5.0)))
        assert found.action == "stop"
        assert found.reason is not None
        assert found.reason["forecast"] == accuracy
        assert found.reason["reason"].endswith("which would add too little for the steps it takes")
    assert action(study_of(*level, ([0.02], 5.0))) == "prune"


def test_many_rivals_are_counted_and_three_named():
    found = verdict(study_of(*LEARNS, *LEARNS, LEARNS[0], ([0.1], 5.0)))
    assert found.reason is not None
    assert found.reason["trials"] == [0, 1, 2, 3, 4]
    assert found.reason["reason"].endswith("trial 0, 1, 2 and 2 more")


@pytest.mark.parametrize("state", [COMPLETE, PRUNED, RUNNING])
def test_rivals_that_run_or_are_finished_count(state):
    study = study_of(*LEARNS, state=state)
    add(study, [0.1], 5.0)
    assert action(study) == "prune"


def test_a_failed_rival_does_not_count():
    # it is not in the study's front, so nothing that it beats has a better trial there
    study = study_of(*LEARNS, state=FAIL)
    add(study, [0.1], 5.0)
    assert action(study) == "go"
    study = study_of(([0.2, 0.3], 2.0), ([0.2, 0.3], 2.0))
    add(study, [0.9, 0.9], 10.0, state=FAIL)
    add(study, [0.4], 5.0)
    assert action(study) != "prune"


def test_exempt_trials_are_never_pruned_nor_stopped():
    for accuracy, ratio, expected in ((0.3, 5.0, "prune"), (0.9, 5.0, "stop")):
        level = ([0.8] * 4, 10.0), ([0.7] * 4, 20.0)
        study = study_of(*level)
        add(study, [accuracy], ratio, attrs={Attr.ANCHOR: "m1", "kdsearch:exempt": True})
        assert action(study) == "go"
        assert action(study, exempt=Attr.ANCHOR) == "go"
        assert action(study, exempt="another") == expected
        add(study, [accuracy], ratio, attrs={Attr.ANCHOR: "3x3"})  # of somebody else's making
        assert action(study) == expected


def test_the_best_checkpoint_counts_not_the_last():
    level = ([0.8] * 4, 10.0), ([0.7] * 4, 20.0)
    assert action(study_of(*level, ([0.9, 0.1, 0.1], 5.0))) == "stop"
    assert action(study_of(*level, ([0.6, 0.7, 0.1], 5.0))) == "prune"


def test_one_trial_goes_on_and_so_does_one_without_a_checkpoint():
    assert action(study_of(([0.5], 10.0))) == "go"
    assert action(study_of(([], 10.0))) == "go"
    study = study_of(*LEARNS, ([], 1.0))
    assert action(study) == "go"
    study.add_trial(create_trial(state=RUNNING))
    assert action(study) == "go"


def test_a_study_without_a_trial_has_nothing_to_judge():
    study = optuna.create_study(directions=MAX2, pruner=ParetoPruner(audit=0))
    trial = study.ask()
    assert not should_prune(trial)
    assert not should_stop(trial)
    report(trial, (None, 2.0), 0)
    assert not should_prune(trial)
    assert not should_stop(trial)


def test_a_known_objective_that_was_never_told_is_not_guessed():
    study = study_of(*LEARNS, ([0.1], NAN))
    assert action(study) == "go"
    add(study, [0.1], None)
    assert action(study) == "go"
    add(study, [0.1], 5.0)
    assert action(study) == "prune"


def test_nan_is_no_checkpoint():
    assert action(study_of(([NAN] * 3, 10.0), ([NAN] * 3, 20.0), ([0.1], 1.0))) == "go"
    assert action(study_of(*LEARNS, ([0.3, NAN], 5.0))) == "prune"
    assert action(study_of(*LEARNS, ([NAN, 0.3], 5.0))) == "prune"
    assert action(study_of(([NAN] * 4, 99.0), *LEARNS, ([0.1], 5.0))) == "prune"


def test_a_trial_that_diverged_is_hopeless_unless_one_ever_recovered():
    assert action(study_of(*LEARNS, ([NAN], 1.0))) == "prune"
    found = verdict(study_of(*LEARNS, ([0.99, NAN], 1.0)))
    assert found.action == "stop"  # its best checkpoint stands on the front
    assert found.reason["reason"] == "at step 2, its value is NaN, from which no trial recovered"
    assert action(study_of(*LEARNS, ([0.5, NAN, 0.6], 8.0), ([NAN], 99.0))) == "go"


def test_a_study_in_which_all_is_nan_goes_on():
    assert actions(study_of(*[([NAN, NAN], 10.0)] * 4)) == ["go"] * 4


def test_a_trial_at_its_last_step_goes_on():
    trial = ([0.1], 5.0)
    assert action(study_of(*LEARNS, trial), max_steps=1) == "go"
    assert action(study_of(*LEARNS, trial), max_steps=2) == "prune"
    assert action(study_of(*LEARNS, ([0.3] * 4, 5.0))) == "go"  # the longest curve seen


def test_the_last_step_may_be_a_parameter_of_each_trial():
    study = study_of(*LEARNS)
    add(study, [0.1], 5.0, epochs=1)
    add(study, [0.1], 5.0, epochs=3)
    add(study, [0.1], 5.0)
    assert action(study, 2, max_steps="epochs") == "go"
    assert verdict(study, 3, max_steps="epochs").reason["at"] == 3
    assert verdict(study, 4, max_steps="epochs").reason["at"] == 4  # it has no such parameter
    assert verdict(study, 2).reason["at"] == 4
    add(study, [0.0], 5.0)
    assert verdict(study, 5, max_steps=5).reason["at"] == 5


def test_a_study_that_reports_nothing_beforehand_observes_its_first_objective():
    study = optuna.create_study(directions=MAX2, pruner=ParetoPruner(audit=0))
    for accuracies, ratio in LEARNS:
        trial = study.ask()
        for step, accuracy in enumerate(accuracies, 1):
            report(trial, (accuracy, ratio), step)
        study.tell(trial, (max(accuracies), ratio))
    trial = study.ask()
    report(trial, (0.1, 5.0), 1)
    assert should_prune(trial)


def test_the_observed_objective_may_be_the_second():
    study = optuna.create_study(directions=MAX2)
    for accuracies, ratio in (*LEARNS, ([0.1], 5.0)):
        curve = {"0": [ratio, None], **{str(i): [ratio, a] for i, a in enumerate(accuracies, 1)}}
        study.add_trial(create_trial(state=RUNNING, user_attrs={Attr.CURVE: curve}))
    assert verdict(study) == verdict(study_of(*LEARNS, ([0.1], 5.0)))


@pytest.mark.parametrize("directions", [["maximize", "minimize", "maximize"], ["maximize", "maximize", "minimize"]])
def test_three_objectives(directions):
    last = 1.0 if directions[2] == "maximize" else -1.0
    rivals = [(curve, -last * 10.0, last * 3.0) for curve, _ in LEARNS]
    worse = study_of(*rivals, ([0.1], -last * 5.0, last * 2.0), directions=directions)
    assert action(worse) == "prune"
    assert action(study_of(*rivals, ([0.3], -last * 10.0, last * 6.0), directions=directions)) == "go"


# Curves in eighths and ratios in whole numbers: ties and duplicates are frequent, and sums exact
curves = st.lists(st.integers(0, 8).map(lambda i: i / 8), min_size=1, max_size=5)
trials = st.lists(st.tuples(curves, st.integers(2, 9).map(float)), min_size=1, max_size=7)
trials3 = st.lists(
    st.tuples(curves, st.integers(2, 5).map(float), st.integers(2, 5).map(float)), min_size=1, max_size=6
)
ended = st.integers(0, 7)  # how many of the first trials are ended, for without them there is no pace


def mixed(trials, ended, directions=MAX2, **options):
    study = optuna.create_study(directions=directions)
    for number, trial in enumerate(trials):
        add(study, *trial, state=PRUNED if number < ended else RUNNING, **options)
    return study


def best_points(trials):
    return [(max(curve), *known) for curve, *known in trials]


@given(trials | trials3, ended)
def test_only_what_is_dominated_is_pruned_and_only_what_is_not_is_stopped(trials, ended):
    points = best_points(trials)
    study = mixed(trials, ended, ["maximize"] * len(points[0]))
    for found, point in zip(actions(study), points, strict=True):
        if found != "go":
            dominated = any(pareto.dominates(other, point) for other in points)
            assert found == ("prune" if dominated else "stop")


def gains_of(study, number):
    """What each step of a trial's forecast would add to the front of everyone's best checkpoints, by neighbour."""
    history = History()
    history.update(study, number)
    others = history.curves()
    if not len(others) or history.observed is None or not len(history.own.steps):
        return None
    point = forecast.own_point(history)
    everyone = np.vstack([others.points, point])
    lowest = min(np.nanmin(others.best), history.own.best[0])
    scale = make_scale(everyone, history.sign, 0, lowest=lowest)
    last_step = max(others.last.max(), history.own.steps[-1])
    hope = forecast.forecast(history, scale, last_step=last_step, neighbours=10)
    if hope is None:
        return None
    before = pareto.volume(scale.transform(everyone), scale.reference)
    hoped = [np.array([value, *point[1:]]) for value in hope.values.reshape(-1)]
    return [pareto.volume(scale.transform(np.vstack([everyone, h])), scale.reference) - before for h in hoped]


@given(trials | trials3, ended)
@example([([0.0], 2.0, 3.0), ([0.0, 0.0], 2.0, 2.0), ([0.0, 0.0], 5.0, 5.0)], 0)
def test_without_a_pace_a_trial_goes_on_just_while_its_forecast_adds_something(trials, ended):
    study = mixed(trials, ended, ["maximize"] * (len(trials[0])))
    for number, found in enumerate(actions(study, pace=0)):
        gains = gains_of(study, number)
        if gains is None or max(gains) > 1e-9:
            assert found == "go"
        elif max(gains) < 1e-12:  # nothing, but for what sums of products are off by
            assert found != "go"


@given(trials, ended)
def test_the_reason_names_the_trials_that_the_forecast_does_not_beat(trials, ended):
    study = mixed(trials, ended)
    points = best_points(trials)
    for number, (curve, ratio) in enumerate(trials):
        reason = verdict(study, number).reason
        if reason is None:
            continue
        hoped = (reason["forecast"], ratio)
        expected = [i for i, other in enumerate(points) if i != number and other[0] >= hoped[0] and other[1] >= ratio]
        assert sorted(reason["trials"]) == expected
        assert reason["step"] == len(curve) < reason["at"] == max(len(other) for other, _ in trials)
        assert reason["forecast"] >= max(curve)


@given(curves, trials)
def test_equal_architectures_tie(curve, trials):
    twin = (curve, 5.0)
    study = study_of(twin, *trials, twin)
    one, other = verdict(study, 0), verdict(study, -1)
    assert one.action == other.action
    if not any(pareto.dominates(point, best_points([twin])[0]) for point in best_points(trials)):
        assert one.action != "prune"  # and so not because of the other


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 9)), min_size=3, max_size=8), st.sampled_from([0.25, 1.0]))
def test_with_exact_foresight_no_member_of_the_final_front_is_ended(students, exponent):
    # power laws of one exponent, which the forecast continues as they are
    steps = 6
    trials = [([1 - error / 10 * step**-exponent for step in range(1, steps + 1)], ratio) for error, ratio in students]
    points = best_points(trials)
    on_front = [i for i in pareto.front(points) if points.count(points[i]) == 1]
    for number in on_front:
        for step in range(1, steps + 1):
            curve, ratio = trials[number]
            study = study_of(*trials[:number], *trials[number + 1 :], (curve[:step], ratio))
            assert action(study, pace=0, ideal=1.0) == "go"


@settings(max_examples=30)
@given(trials | trials3, ended, st.integers(0, 2), st.booleans())
def test_turning_an_objective_round_changes_nothing(trials, ended, turned, told):
    count = len(trials[0])
    turned %= count
    sign = [-1.0 if index == turned else 1.0 for index in range(count)]
    options, other_options = {"log": ()}, {"log": (), "ideal": sign[0]}
    if told:
        options["reference"] = [-0.5, *[1.0] * (count - 1)]
        other_options["reference"] = [s * r for s, r in zip(sign, options["reference"], strict=True)]
    other = [
        ([sign[0] * value for value in curve], *(s * value for s, value in zip(sign[1:], known, strict=True)))
        for curve, *known in trials
    ]
    directions = ["maximize" if s > 0 else "minimize" for s in sign]
    study, other = mixed(trials, ended, ["maximize"] * count), mixed(other, ended, directions)
    assert actions(study, ideal=1.0, **options) == actions(other, **other_options)
    assert actions(study) == actions(other)


def test_a_loss_to_be_minimised_needs_no_options():
    losses = [([1 - a for a in curve], ratio) for curve, ratio in (*LEARNS, ([0.1], 5.0))]
    found = verdict(study_of(*losses, directions=["minimize", "maximize"]))
    assert found.action == "prune"
    expected = verdict(study_of(*LEARNS, ([0.1], 5.0))).reason
    assert found.reason["forecast"] == pytest.approx(1 - expected["forecast"])


factors, shifts = st.integers(-3, 3).map(lambda i: 2.0**i), st.integers(-8, 8).map(float)


@settings(max_examples=20)
@given(trials | trials3, ended, st.integers(0, 2), factors, shifts)
def test_unit_and_zero_of_an_objective_do_not_matter(trials, ended, changed, factor, shift):
    directions = ["maximize"] * len(trials[0])
    changed %= len(directions)

    def mapped(index, value):
        return factor * value + shift if index == changed else value

    other = [
        ([mapped(0, value) for value in curve], *(mapped(index, value) for index, value in enumerate(known, 1)))
        for curve, *known in trials
    ]
    assert actions(mixed(trials, ended, directions)) == actions(mixed(other, ended, directions))


@settings(max_examples=20)
@given(trials, ended)
def test_percent_decides_as_fractions_do(trials, ended):
    other = [([100.0 * value for value in curve], ratio) for curve, ratio in trials]  # in eighths: exact
    assert actions(mixed(trials, ended)) == actions(mixed(other, ended))


decades = st.lists(st.tuples(curves, st.sampled_from([1.0, 10.0, 100.0, 1000.0])), min_size=1, max_size=7)


@settings(max_examples=20)
@given(decades, ended, st.sampled_from([0.01, 0.1, 10.0, 1000.0]))
def test_the_unit_of_a_known_objective_on_a_log_scale_does_not_matter(trials, ended, factor):
    other = [(curve, factor * ratio) for curve, ratio in trials]
    assert actions(mixed(trials, ended), log=[1]) == actions(mixed(other, ended), log=[1])


@settings(max_examples=30)
@given(trials, ended)
def test_steps_may_be_counted_in_tens(trials, ended):
    assert actions(mixed(trials, ended, first=10, every=10)) == actions(mixed(trials, ended))


@settings(max_examples=30)
@given(trials, ended)
def test_steps_may_be_counted_from_zero(trials, ended):
    assert actions(mixed(trials, ended, first=0)) == actions(mixed(trials, ended))


@given(trials, ended, st.randoms(use_true_random=False))
def test_one_pruner_for_a_whole_study_says_what_a_new_one_says(trials, ended, random):
    study, pruner = mixed(trials, ended), ParetoPruner(audit=0)
    running = list(range(min(ended, len(trials)), len(trials)))
    random.shuffle(running)
    for number in running:
        assert pruner.verdict(study, study.get_trials()[number]) == verdict(study, number)


def test_asked_twice_at_a_step_it_answers_alike():
    study = study_of(*LEARNS, ([0.7], 11.0))
    pruner = ParetoPruner(audit=0)
    first = pruner.verdict(study, study.get_trials()[2])
    assert first.action == "go"
    add(study, [0.99] * 4, 99.0)  # ends the other's hopes
    assert action(study, 2) != "go"
    assert pruner.verdict(study, study.get_trials()[2]) == first


def test_one_pruner_may_serve_two_studies():
    pruner = ParetoPruner(audit=0)
    study, other = study_of(*LEARNS, ([0.1], 5.0)), study_of(([0.2, 0.3], 4.0), ([0.2, 0.4], 4.0), ([0.1], 5.0))
    for _ in range(2):
        assert pruner.prune(study, study.get_trials()[2])
        assert not pruner.prune(other, other.get_trials()[2])


def test_a_pruner_can_be_pickled_and_still_works():
    study = study_of(*LEARNS, ([0.1], 5.0))
    study.pruner = ParetoPruner(max_steps=3, audit=0)
    before = study.pruner.verdict(study, study.get_trials()[2])
    copy = pickle.loads(pickle.dumps(study.pruner))
    assert copy.verdict(study, study.get_trials()[2]) == before
    assert before.reason["at"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimism": 1.1}, r"quantile from 0 to 1 \(got 1.1\)"),
        ({"optimism": -0.1}, r"quantile from 0 to 1 \(got -0.1\)"),
        ({"optimism": NAN}, r"quantile from 0 to 1 \(got nan\)"),
        ({"neighbours": 0}, r"at least 1 .*\(got 0 and 0.1\)"),
        ({"pace": -0.1}, r"at least 0 \(got 10 and -0.1\)"),
        ({"audit": 1.5}, r"share from 0 to 1 \(got 1.5\)"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ParetoPruner(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"log": [2]}, r"2 objectives, 0 to 1 \(got 2\)"), ({"reference": [0.0]}, r"each of the 2 objectives \(got 1\)")],
)
def test_options_that_do_not_fit_the_study_are_refused_at_the_first_decision(options, message):
    pruner = ParetoPruner(**options)
    study = optuna.create_study(directions=MAX2, pruner=pruner)
    trial = asked(study, 0.1, 5.0)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            should_prune(trial)


def test_options_may_be_numbers_of_numpy():
    study = study_of(*LEARNS, ([0.1], 5.0))
    plain = {"log": [1], "reference": [0.0, 1.0], "ideal": 1.0, "max_steps": 3, "neighbours": 2, "seed": 1}
    others = {name: np.array(value) if isinstance(value, list) else np.int64(value) for name, value in plain.items()}
    assert verdict(study, **others) == verdict(study, **plain)


def warnings_of(study, **options):
    """What a pruner that is asked about every trial twice warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        actions(study, **options)
        actions(study, **options)
    return [str(one.message) for one in caught]


def test_a_name_that_no_trial_has_as_a_parameter_is_warned_of_once():
    study = study_of(*LEARNS, ([0.1], 5.0))
    [text] = warnings_of(study, max_steps="epochz")
    assert "(got 'epochz', which no trial has so far), else the longest curve seen is used instead" in text
    assert "(now up to step 4); correct the name" in text
    assert verdict(study, max_steps="epochz") == verdict(study)


def test_a_name_that_no_trial_has_is_warned_of_though_nothing_is_ended():
    ended = [([0.5, 0.7], 10.0 + i) for i in range(NAMED_BY)]
    few, many = (study_of(*ended[:count], state=COMPLETE) for count in (NAMED_BY - 1, NAMED_BY))
    for study in (few, many):
        add(study, [0.6], 99.0)
        assert len(warnings_of(study, max_steps="epochz")) == (study is many)


def test_a_parameter_that_some_trials_lack_is_not_warned_of():
    study = study_of(*LEARNS, ([0.1], 5.0))
    add(study, [0.1], 5.0, epochs=3)
    assert not warnings_of(study, max_steps="epochs")
    study = study_of(*LEARNS, ([0.52], 10.0))  # none has it yet, but nothing is ended
    assert not warnings_of(study, max_steps="epochs")


def lower_is_better(*trials):
    """A study that minimises the first objective, of values 1 less each."""
    return study_of(*[([1 - a for a in curve], known) for curve, known in trials], directions=["minimize", "maximize"])


def test_an_ideal_that_a_value_passes_is_warned_of_once():
    trials = *LEARNS, ([0.1], 5.0)
    [text] = warnings_of(study_of(*trials), ideal=0.25)
    assert "(got 0.25, and a trial reported 0.85), else good trials are ended; give a value that none can pass" in text
    [text] = warnings_of(lower_is_better(*trials), ideal=0.75)
    assert "(got 0.75, and a trial reported 0.15" in text
    assert not warnings_of(study_of(*trials), ideal=0.85)
    assert not warnings_of(lower_is_better(*trials), ideal=0.15)
    assert not warnings_of(study_of(*trials), ideal=0.85 - 1e-9)  # rounding


def test_a_reference_that_no_trial_beats_is_warned_of_once():
    trials = *LEARNS, ([0.1], 5.0)
    [text] = warnings_of(study_of(*trials), reference=[1, 100])
    assert "(got 1, 100, and the best value seen of each is 0.85, 10), else no trial counts" in text
    [text] = warnings_of(lower_is_better(*trials), reference=[0.0, 1.0])
    assert "(got 0, 1, and the best value seen of each is 0.15, 10)" in text
    assert len(warnings_of(study_of(*trials), reference=[0.2, 100])) == 1  # it is worse in one objective alone
    assert not warnings_of(study_of(*trials), reference=[0.2, 1])
    assert not warnings_of(study_of(*trials), reference=[0.2, 1], log=[1])


def test_a_study_of_one_objective_is_refused():
    line = r"two or more objectives \(got 1\); use one of Optuna's own pruners with `trial.report`"
    study = optuna.create_study(pruner=ParetoPruner())
    trial = study.ask()
    for ask in (should_prune, should_stop, lambda trial: report(trial, (0.5,), 1), optuna.Trial.should_prune):
        with pytest.raises(KdsearchError, match=line):
            ask(trial)
    assert not trial.user_attrs


def test_in_a_study_of_one_objective_another_pruner_is_asked_as_usual(recwarn):
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0.5))
    trial = study.ask()
    trial.report(0.9, 1)
    assert should_prune(trial)
    assert not recwarn.list


def test_a_higher_pace_asks_for_more():
    study = study_of(LEARNS[0], (LEARNS[1][0], 8.0), ([0.3], 12.0), state=PRUNED)
    add(study, [0.62, 0.73], 9.0)
    kinds = [action(study, pace=pace) for pace in (0.0, 0.1, 1.0, 100.0)]
    assert kinds[0] == "go"
    assert kinds[-1] == "prune"
    assert sorted(kinds) == kinds  # "go" comes before "prune"


def test_a_report_is_kept_in_one_attribute():
    trial = optuna.create_study(directions=MAX2).ask()
    report(trial, (None, 12), 0)
    report(trial, (0.6, 12), 1)
    assert trial.user_attrs == {"kdsearch:curve": {"0": [None, 12.0], "1": [0.6, 12.0]}, "kdsearch:trial": 0}
    assert trial.study.trials[0].intermediate_values == {}
    own = trial.study.ask()
    report(own, (None, 12), 0, prefix="")
    assert own.user_attrs == {Attr.CURVE: {"0": [None, 12.0]}}


@pytest.mark.parametrize("values", [(), (0.5,), (0.5, 1.0, 2.0)])
def test_a_report_holds_a_value_for_each_objective(values):
    trial = optuna.create_study(directions=MAX2).ask()
    with pytest.raises(ValueError, match=rf"one for each of the 2 objectives \(got {len(values)}\)"):
        report(trial, values, 1)
    assert not trial.user_attrs


def asked(study, accuracy, ratio):
    trial = study.ask()
    report(trial, (None, ratio), 0)
    report(trial, (accuracy, ratio), 1)
    return trial


def test_should_prune_stores_the_reason():
    study = study_of(*LEARNS)
    study.pruner = ParetoPruner(audit=0)
    trial = asked(study, 0.1, 5.0)
    assert not should_stop(trial)
    assert trial.user_attrs.keys() == {"kdsearch:curve", "kdsearch:trial"}
    assert should_prune(trial)
    reason = trial.user_attrs["kdsearch:pruned_by"]
    assert reason.keys() == {"step", "at", "forecast", "trials", "reason"}
    assert (reason["step"], reason["at"], reason["trials"]) == (1, 4, [0, 1])
    assert "kdsearch:stopped_at" not in trial.user_attrs


def test_should_stop_stores_step_and_reason():
    study = study_of(([0.8] * 4, 10.0), ([0.7] * 4, 20.0))
    study.pruner = ParetoPruner(audit=0)
    trial = asked(study, 0.875, 5.0)
    assert not should_prune(trial)
    assert trial.user_attrs.keys() == {"kdsearch:curve", "kdsearch:trial"}
    assert should_stop(trial)
    assert trial.user_attrs["kdsearch:stopped_at"] == 1
    assert trial.user_attrs["kdsearch:stopped_by"].keys() == {"step", "at", "forecast", "trials", "reason"}
    assert "kdsearch:pruned_by" not in trial.user_attrs


def test_a_trial_that_goes_on_stores_nothing():
    study = study_of(*LEARNS)
    study.pruner = ParetoPruner(audit=0)
    trial = asked(study, 0.6, 12.0)
    assert not should_prune(trial)
    assert not should_stop(trial)
    assert trial.user_attrs.keys() == {"kdsearch:curve", "kdsearch:trial"}


class AlwaysPruner(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return True


@pytest.mark.parametrize(("pruner", "expected"), [(optuna.pruners.NopPruner(), False), (AlwaysPruner(), True)])
def test_another_pruner_is_asked_too(pruner, expected):
    study = study_of(*LEARNS)
    study.pruner = pruner
    trial = asked(study, 0.1, 1.0)
    assert should_prune(trial) == expected
    assert not should_stop(trial)
    assert "kdsearch:pruned_by" not in trial.user_attrs


EPOCHS = 5


def simulated(trial: optuna.Trial) -> tuple[float, float]:
    """A student of some width: the wider the slower; it learns over epochs, sometimes badly."""
    width = trial.suggest_int("width", 8, 64)
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    kind = trial.suggest_int("kind", 0, 3)
    if kind:
        trial.suggest_float(f"extra_{kind}", 0.0, 1.0)  # a conditional parameter
    ratio, best = 640 / width, 0.0
    report(trial, (None, ratio), 0)
    for epoch in range(1, EPOCHS + 1):
        skill = (1 - math.exp(-epoch)) * (1 - 4 / width) * math.exp(-((math.log10(rate) + 2) ** 2))
        best = max(best, round(skill, 2))
        report(trial, (round(skill, 2), ratio), epoch)
        if epoch < EPOCHS and should_prune(trial):
            raise optuna.TrialPruned
        if epoch < EPOCHS and should_stop(trial):
            break
    return best, ratio


def pruned_study(name: str, count: int, storage: BaseStorage | None = None, jobs: int = 1) -> optuna.Study:
    study = optuna.create_study(
        directions=MAX2, storage=storage, sampler=samplers.make(name, 0), pruner=ParetoPruner(audit=0)
    )
    study.enqueue_trial({"width": 64, "rate": 1e-4, "kind": 0}, user_attrs={"kdsearch:exempt": "worst"})
    study.optimize(simulated, n_trials=count, n_jobs=jobs)
    return study


def database(path: Path) -> BaseStorage:
    """An sqlite file, written without waiting for the disk."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    sqlalchemy.event.listen(storage.engine, "connect", lambda sqlite, _: sqlite.execute("PRAGMA synchronous=OFF"))
    storage.engine.dispose()  # connections made before
    return storage


def pruned_of(study: optuna.Study, count: int) -> int:
    """How many are pruned of a study's trials, which are whole or pruned with a reason, the anchor whole.

    No pruned one was worth more than those on the front.
    """
    trials = study.trials
    states = Counter(trial.state for trial in trials)
    assert set(states) == {COMPLETE, PRUNED}
    assert states.total() == count
    assert (trials[0].state, len(trials[0].user_attrs["kdsearch:curve"])) == (COMPLETE, EPOCHS + 1)
    assert all((trial.state == PRUNED) == ("kdsearch:pruned_by" in trial.user_attrs) for trial in trials)
    checkpoints = [
        tuple(values)
        for trial in trials
        for epoch, values in trial.user_attrs["kdsearch:curve"].items()
        if epoch != "0"
    ]
    different = sorted(set(checkpoints))
    on_front = {different[i] for i in pareto.front(different)}
    assert {tuple(trial.values) for trial in study.best_trials} == on_front
    return states[PRUNED]


def shown(study: optuna.Study) -> tuple[int, int]:
    """How many trials Optuna's own tools show: in a table, and as points of a figure."""
    figure = optuna.visualization.plot_pareto_front(study)
    return len(study.trials_dataframe()), sum(len(part.x) for part in figure.data)


def test_random_search_survives_pruning():
    assert pruned_of(pruned_study("random", 30), 30) > 3


def test_trials_may_run_in_threads():
    assert pruned_of(pruned_study("random", 30, jobs=4), 30) > 3


@pytest.fixture
def hasty_threads():
    """Threads that take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_that_ask_at_once_are_answered_as_if_alone():
    study, count = study_of(*LEARNS, *[([0.1], 5.0)] * 8), 8
    for _ in range(20):
        pruner, start, found = ParetoPruner(audit=0), threading.Barrier(count), []

        def ask(number, pruner=pruner, start=start, found=found):
            start.wait()
            found.append(pruner.verdict(study, study.get_trials(deepcopy=False)[number]).action)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(2, 2 + count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == ["prune"] * count


@pytest.mark.slow
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("name", "count"), [("tpe", 200), ("nsga2", 200), ("random", 200), ("gp", 40)])
def test_samplers_survive_pruning_on_several_objectives(name, count, stored, tmp_path):
    # Optuna's TPE reads intermediate values of pruned trials and asks for the study's single direction
    study = pruned_study(name, count, database(tmp_path / "kd.db") if stored else None)
    pruned = pruned_of(study, count)
    assert pruned > count / 10
    assert shown(study) == (count, count - pruned)


def learnt(pruner=None, directions=MAX2, **options):
    """A study with two whole trials, and a pruner."""
    study = study_of(*LEARNS, directions=directions, **options)
    study.pruner = ParetoPruner(audit=0) if pruner is None else pruner
    return study


@pytest.mark.parametrize("step", [3, 3.0, np.int64(3), np.float32(3)])
def test_a_step_may_be_any_whole_number(step):
    trial = learnt().ask()
    report(trial, (0.3, 5.0), step)
    assert trial.user_attrs["kdsearch:curve"] == {"3": [0.3, 5.0]}


def test_a_step_that_is_no_whole_number_is_refused():
    with pytest.raises(ValueError, match=r"whole number \(got 0.5\)"):
        report(learnt().ask(), (0.1, 5.0), 0.5)


def test_steps_may_be_negative():
    trial = learnt(ParetoPruner(max_steps=9, audit=0)).ask()
    report(trial, (0.1, 5.0), -3)
    assert not should_prune(trial)


@pytest.mark.parametrize("steps", [(4, 3, 2), (1, 1, 1)])
def test_steps_that_fall_or_repeat_are_warned_of_once(steps):
    study = learnt()

    def report_all():
        for trial in (study.ask(), study.ask()):
            for number, step in enumerate(steps):
                report(trial, (0.1 * number, 5.0), step)

    with pytest.warns(UserWarning, match="steps must count up within a trial") as caught:
        report_all()
    assert [Path(one.filename) for one in caught] == [Path(__file__)]


def test_a_step_reported_again_with_the_same_values_is_no_mistake(recwarn):
    trial = learnt().ask()
    report(trial, (None, 5.0), 0)
    report(trial, (0.1, 5.0), 0)
    report(trial, (0.1, 5.0), 0)
    assert not recwarn.list


@pytest.mark.parametrize(
    "pruner", [optuna.pruners.MedianPruner(), optuna.pruners.PatientPruner(ParetoPruner(audit=0), patience=1)]
)
def test_a_pruner_that_cannot_prune_here_is_warned_of_once(pruner):
    study = learnt(pruner)
    trials = [asked(study, 0.1, 5.0) for _ in range(2)]
    with pytest.warns(UserWarning, match=r"set `study.pruner = kdsearch.ParetoPruner\(\)`, not wrapped") as caught:
        assert not any(map(should_prune, trials))
    assert len(caught) == 1


def test_a_study_loaded_without_a_pruner_is_warned_of(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    optuna.create_study(study_name="x", storage=url, directions=MAX2, pruner=ParetoPruner(audit=0))
    trial = optuna.load_study(study_name="x", storage=url).ask()
    with pytest.warns(UserWarning, match="after create_study and load_study"):
        assert not should_prune(trial)


@pytest.mark.parametrize("trial", [optuna.trial.FixedTrial({}), create_trial(values=[0.5, 1.0])])
def test_a_trial_without_a_study_runs_to_its_end(trial):
    report(trial, (0.5, 1.0), 1)
    report(trial, "of whatever", "step")
    assert not should_prune(trial)
    assert not should_stop(trial)
    assert trial.user_attrs == {}


def test_a_retried_trial_begins_with_an_empty_curve():
    study = learnt()
    first = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    for step, accuracy in enumerate([0.5, 0.72, 0.81], 1):
        report(first, (accuracy, 12.0), step)
    study.tell(first, state=FAIL)
    optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2)(study, study.trials[first.number])
    retry = study.ask()
    assert retry.user_attrs["kdsearch:curve"]  # copied by Optuna
    assert not should_prune(retry)  # and not taken for its own
    report(retry, (0.1, 5.0), 1)
    assert retry.user_attrs["kdsearch:curve"] == {"1": [0.1, 5.0]}
    assert should_prune(retry)


def test_the_observed_objective_may_stand_anywhere_without_a_none():
    study = optuna.create_study(directions=["minimize", "maximize"], pruner=ParetoPruner(audit=0))
    for accuracies, ratio in LEARNS:
        trial = study.ask()
        for step, accuracy in enumerate(accuracies, 1):
            report(trial, (-ratio, accuracy), step)
        study.tell(trial, (-ratio, max(accuracies)))
    trial = study.ask()
    report(trial, (-5.0, 0.1), 1)
    assert should_prune(trial)


def test_two_objectives_that_change_are_an_error():
    study = learnt()
    trial = study.ask()
    for step in (1, 2):
        report(trial, (0.1 * step, 3.0 * step), step)
    should_prune(trial)  # the others' first reports say which one is observed
    bare = optuna.create_study(directions=MAX2, pruner=ParetoPruner(audit=0))
    trial = bare.ask()
    for step in (1, 2):
        report(trial, (0.1 * step, 3.0 * step), step)
    with pytest.raises(KdsearchError, match="exactly one objective may change from step to step"):
        should_prune(trial)


def constrained(trial):
    """Cheats are better, and infeasible."""
    width = trial.suggest_float("width", 0.05, 1)
    cheat = trial.suggest_categorical("cheat", [0, 1])
    trial.set_user_attr("limit", (1.0,) if cheat else (-1.0,))
    size, best = width * (30 if cheat else 100), 0.0
    for step in range(1, 11):
        best = min(0.99, 0.3 + 0.5 * width**0.3 + 0.15 * cheat) * (1 - math.exp(-step / 3))
        report(trial, (best, size), step)
        if should_prune(trial):
            raise optuna.TrialPruned
    return best, size


@pytest.mark.filterwarnings("ignore:`constraints_func` has been deprecated")
def test_infeasible_trials_prune_no_feasible_one():
    counts = []
    for pruner in (ParetoPruner(audit=0), optuna.pruners.NopPruner()):
        limits = {"constraints_func": lambda trial: trial.user_attrs.get("limit", (0.0,))}
        sampler = optuna.samplers.NSGAIISampler(seed=0, **limits)
        study = optuna.create_study(directions=["maximize", "minimize"], pruner=pruner, sampler=sampler)
        study.optimize(constrained, n_trials=40)
        counts.append(len(study.best_trials))
    assert counts[0] >= 0.7 * counts[1]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_one_trial_of_each_eight_is_drawn_for_the_audit_and_more_at_the_start(seed, start):
    early = [drawn(number, 1 / 8, seed) for number in range(16)]
    assert [sum(early[i : i + 4]) for i in range(0, 16, 4)] == [1] * 4
    block = 16 + start // 8 * 8
    assert sum(drawn(number, 1 / 8, seed) for number in range(block, block + 8)) == 1
    assert not any(drawn(number, 0, seed) for number in range(20))
    assert all(drawn(number, 1, seed) for number in range(20))


def test_the_audits_draws_depend_on_the_seed():
    assert len({tuple(drawn(number, 1 / 8, seed) for number in range(64)) for seed in range(9)}) > 7


def test_an_audited_trial_is_never_ended_and_says_when_it_would_have_been():
    study = study_of(*LEARNS, ([0.1], 3.0), state=PRUNED)
    study.pruner = ParetoPruner(audit=1, max_steps=4)
    trial = study.ask()
    report(trial, (None, 5.0), 0)
    assert not should_prune(trial)  # too many steps of audits so far? there are none
    assert trial.user_attrs["kdsearch:audit"]["would_end"] is None
    assert "random" in trial.user_attrs["kdsearch:audit"]["never_pruned"]
    for step in (1, 2, 3):
        report(trial, (0.1, 5.0), step)
        assert not should_prune(trial)
        assert not should_stop(trial)
    assert trial.user_attrs["kdsearch:audit"]["would_end"] == 1
    again = ParetoPruner(audit=0)  # of another process, or resumed
    assert again.verdict(study, study.get_trials()[trial.number]).action == "go"


def test_audits_are_not_begun_while_they_have_taken_more_than_a_third_of_all_steps():
    study = study_of(*LEARNS, state=PRUNED)
    study.pruner = ParetoPruner(audit=1)
    for expected in (True, True, False):
        trial = asked(study, 0.3, 5.0)
        should_prune(trial)
        assert ("kdsearch:audit" in trial.user_attrs) == expected
        for step in (2, 3, 4):
            report(trial, (0.1, 5.0), step)
        study.tell(trial, (0.1, 5.0))


def late_or_not(state, would_end=None, count=1):
    """Trials that came from far behind to the front in their last step, and those that were ended before."""
    audit = {} if would_end is None else {"audit": {"trial": 0, "would_end": would_end}}
    return [(([0.3, 0.3, 0.3, 0.95], 10.0) if state == COMPLETE else ([0.3], 10.0), state, audit)] * count


@pytest.mark.parametrize(("audited", "expected"), [(None, "prune"), (1, "go")])
def test_an_audited_late_bloomer_stands_for_those_that_were_ended_like_it(audited, expected):
    study = study_of(*[([0.5, 0.6, 0.7, 0.8], 10.0)] * 12, state=COMPLETE)
    add(study, [0.85] * 4, 30.0, state=COMPLETE)
    for trial, state, attrs in [*late_or_not(PRUNED, count=12), *(late_or_not(COMPLETE, 1) if audited else [])]:
        add(study, *trial, state=state, attrs=attrs)
    add(study, [0.3], 12.0)
    assert action(study) == expected
