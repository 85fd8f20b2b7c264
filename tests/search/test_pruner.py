from __future__ import annotations

import math
from collections import Counter

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from kdsearch import pareto, report, should_prune
from kdsearch.records import Attr
from kdsearch.search import samplers
from kdsearch.search.pruner import ParetoPruner

MAX2 = ["maximize", "maximize"]
COMPLETE, FAIL, PRUNED, RUNNING = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING


def add(study, accuracies, ratio, *, state=RUNNING, anchor=None):
    """A trial with its accuracy after each epoch, and its number."""
    curve = {"0": [None, ratio], **{str(epoch): [a, ratio] for epoch, a in enumerate(accuracies, 1)}}
    add_curve(study, curve, state=state, anchor=anchor)


def add_curve(study, curve, *, state=RUNNING, anchor=None):
    attrs = {Attr.CURVE: curve, **({Attr.ANCHOR: anchor} if anchor else {})}
    values = curve[max(curve, key=int)] if state == COMPLETE else None
    study.add_trial(create_trial(state=state, values=values, user_attrs=attrs))


def study_of(*trials, directions=MAX2):
    study = optuna.create_study(directions=directions)
    for trial in trials:
        add(study, *trial)
    return study


def hopeless(study, number=-1, **options):
    return ParetoPruner(**options).prune(study, study.get_trials()[number])


def test_a_trial_is_pruned_when_one_as_fast_is_better_at_the_same_epoch():
    assert hopeless(study_of(([0.9, 0.9], 10.0), ([0.8], 10.0)))
    assert hopeless(study_of(([0.9], 20.0), ([0.9], 10.0)))


def test_a_trial_that_is_better_in_anything_is_kept():
    assert not hopeless(study_of(([0.9], 10.0), ([0.8], 11.0)))
    assert not hopeless(study_of(([0.9], 10.0), ([0.91], 5.0)))


def test_an_equal_trial_is_kept():
    study = study_of(([0.9], 10.0), ([0.9], 10.0))
    assert not hopeless(study, 0)
    assert not hopeless(study, 1)


def test_a_rivals_later_epochs_do_not_count():
    study = study_of(([0.5, 0.99, 0.99], 10.0), ([0.6], 10.0))
    assert not hopeless(study)
    add(study, [0.6, 0.7], 10.0)
    assert hopeless(study)


def test_a_rivals_earlier_epochs_count():
    assert hopeless(study_of(([0.9], 10.0), ([0.6, 0.7, 0.8], 10.0)))  # one epoch was enough for it


def test_the_best_checkpoint_counts_not_the_last():
    study = study_of(([0.8, 0.8, 0.8], 10.0), ([0.85, 0.7, 0.6], 10.0))
    assert not hopeless(study)


def test_different_rivals_may_beat_different_checkpoints():
    study = optuna.create_study(directions=MAX2)
    add_curve(study, {"1": [0.9, 10.0]})
    add_curve(study, {"1": [0.5, 30.0]})
    add_curve(study, {"1": [0.4, 25.0], "2": [0.8, 5.0]})
    assert hopeless(study)
    add_curve(study, {"1": [0.4, 35.0], "2": [0.8, 5.0]})
    assert not hopeless(study)


def test_exempt_trials_are_never_pruned():
    study = study_of(([0.9], 10.0))
    add(study, [0.1], 1.0, anchor="m1")
    assert not hopeless(study)
    assert hopeless(study, exempt="another")


def test_no_trial_is_pruned_before_the_warm_up():
    study = study_of(([0.9], 10.0), ([0.1, 0.1], 1.0))
    assert hopeless(study, warm_up=2)
    assert not hopeless(study, warm_up=3)


def test_a_trial_without_a_checkpoint_is_kept():
    study = study_of(([0.9], 10.0), ([], 1.0))
    assert not hopeless(study, warm_up=0)
    study.add_trial(create_trial(state=RUNNING))
    assert not hopeless(study, warm_up=0)


@pytest.mark.parametrize("state", [COMPLETE, PRUNED, RUNNING])
def test_rivals_that_run_or_are_finished_count(state):
    study = optuna.create_study(directions=MAX2)
    add(study, [0.9], 10.0, state=state)
    add(study, [0.8], 10.0)
    assert hopeless(study)


def test_a_failed_rival_does_not_count():
    # it is not in the study's front, so nothing that it beats has a better trial there
    study = optuna.create_study(directions=MAX2)
    add(study, [0.9], 10.0, state=FAIL)
    add(study, [0.8], 10.0)
    assert not hopeless(study)


def test_directions_are_the_studys():
    study = study_of(([0.1], 10.0), ([0.2], 10.0), directions=["minimize", "maximize"])
    assert not hopeless(study, 0)
    assert hopeless(study, 1)
    study = study_of(([0.1], 10.0), ([0.1], 11.0), directions=["minimize", "minimize"])
    assert not hopeless(study, 0)
    assert hopeless(study, 1)


def test_nan_beats_nothing_and_is_no_checkpoint():
    assert not hopeless(study_of(([math.nan], 10.0), ([0.1], 1.0)))
    assert not hopeless(study_of(([0.9], 10.0), ([math.nan], 1.0)))
    assert hopeless(study_of(([0.9, 0.9], 10.0), ([math.nan, 0.1], 1.0)))


def test_three_objectives():
    study = optuna.create_study(directions=["maximize", "minimize", "maximize"])
    add_curve(study, {"1": [0.9, 5.0, 1.0]})
    add_curve(study, {"1": [0.8, 5.0, 1.0]})
    assert hopeless(study)
    add_curve(study, {"1": [0.8, 5.0, 2.0]})
    assert not hopeless(study)
    add_curve(study, {"1": [0.8, 4.0, 1.0]})
    assert not hopeless(study)


curves = st.lists(st.integers(0, 4).map(lambda i: i / 4), min_size=1, max_size=4)
trials = st.lists(st.tuples(curves, st.integers(1, 3).map(float)), min_size=1, max_size=5)


def plain_rule(trials, number):
    """The rule of the pruner in its own words: each checkpoint is dominated by another's of no later epoch."""
    own, own_ratio = trials[number]
    for accuracy in own:
        beaten = False
        for other, (curve, ratio) in enumerate(trials):
            for rival in curve[: len(own)]:
                at_least = rival >= accuracy and ratio >= own_ratio
                if other != number and at_least and (rival > accuracy or ratio > own_ratio):
                    beaten = True
        if not beaten:
            return False
    return True


@given(trials)
def test_the_rule_is_that_of_a_plain_loop(trials):
    study = study_of(*trials)
    assert [hopeless(study, i) for i in range(len(trials))] == [plain_rule(trials, i) for i in range(len(trials))]


@given(trials)
def test_a_trial_with_a_checkpoint_on_the_front_is_never_pruned(trials):
    study = study_of(*trials)
    points = [(accuracy, ratio) for curve, ratio in trials for accuracy in curve]
    for number, (curve, ratio) in enumerate(trials):
        if any(not any(pareto.dominates(p, (accuracy, ratio)) for p in points) for accuracy in curve):
            assert not hopeless(study, number)


@given(trials)
def test_turning_an_objective_round_changes_nothing(trials):
    turned = [(curve, -ratio) for curve, ratio in trials]
    study, other = study_of(*trials), study_of(*turned, directions=["maximize", "minimize"])
    assert [hopeless(study, i) for i in range(len(trials))] == [hopeless(other, i) for i in range(len(trials))]


@given(trials)
def test_the_reason_names_a_trial_that_is_better(trials):
    study = study_of(*trials)
    for number, (curve, ratio) in enumerate(trials):
        reason = ParetoPruner().reason(study, study.get_trials()[number])
        if reason is None:
            continue
        rival, rival_ratio = trials[reason["trial"]]
        assert reason["trial"] != number
        assert reason["step"] == len(curve)
        assert any(
            pareto.dominates((r, rival_ratio), (accuracy, ratio)) for r in rival[: len(curve)] for accuracy in curve
        )


def test_a_report_is_kept_in_one_attribute():
    trial = optuna.create_study(directions=MAX2).ask()
    report(trial, (None, 12), 0)
    report(trial, (0.5, 12), 1)
    report(trial, (0.6, 12), 1)
    assert trial.user_attrs[Attr.CURVE] == {"0": [None, 12.0], "1": [0.6, 12.0]}
    assert trial.study.trials[0].intermediate_values == {}


@pytest.mark.parametrize("values", [(), (0.5,), (0.5, 1.0, 2.0)])
def test_a_report_holds_a_value_for_each_objective(values):
    trial = optuna.create_study(directions=MAX2).ask()
    with pytest.raises(ValueError, match=rf"one for each of the 2 objectives \(got {len(values)}\)"):
        report(trial, values, 1)
    assert Attr.CURVE not in trial.user_attrs


def test_should_prune_stores_the_reason():
    study = optuna.create_study(directions=MAX2, pruner=ParetoPruner())
    better, worse = study.ask(), study.ask()
    report(better, (0.9, 10), 1)
    report(worse, (0.8, 10), 1)
    assert not should_prune(better)
    assert Attr.PRUNED_BY not in study.trials[0].user_attrs
    assert should_prune(worse)
    reason = study.trials[1].user_attrs[Attr.PRUNED_BY]
    assert (reason["trial"], reason["step"]) == (0, 1)
    assert "trial 0 was already better" in reason["reason"]


def test_another_pruner_is_asked_too():
    study = optuna.create_study(directions=MAX2, pruner=optuna.pruners.NopPruner())
    add(study, [0.9], 10.0)
    trial = study.ask()
    report(trial, (0.1, 1.0), 1)
    assert not should_prune(trial)


EPOCHS = 5


def simulated(trial: optuna.Trial) -> tuple[float, float]:
    """A student of some width: the wider the slower; it learns over epochs, sometimes badly."""
    width = trial.suggest_categorical("width", [8, 16, 32, 64])
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
    return best, ratio


def survives(name: str, count: int, storage: str | None = None) -> None:
    study = optuna.create_study(
        directions=MAX2, storage=storage, sampler=samplers.make(name, 0), pruner=ParetoPruner(exempt="anchor")
    )
    study.enqueue_trial({"width": 64, "rate": 1e-4, "kind": 0}, user_attrs={Attr.ANCHOR: "worst"})
    study.optimize(simulated, n_trials=count)
    states = Counter(trial.state for trial in study.trials)
    assert set(states) == {COMPLETE, PRUNED}
    assert states.total() == count
    assert states[PRUNED] > count / 10
    assert study.trials[0].state == COMPLETE
    checkpoints = [
        (trial.number, tuple(values))
        for trial in study.trials
        for epoch, values in trial.user_attrs[Attr.CURVE].items()
        if epoch != "0"
    ]
    on_front = {checkpoints[i][1] for i in pareto.front([point for _, point in checkpoints])}
    assert {tuple(trial.values) for trial in study.best_trials} == on_front  # no pruned trial was worth more


def test_random_search_survives_pruning():
    survives("random", 200)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_samplers_survive_pruning_on_several_objectives(name):
    # Optuna's TPE reads intermediate values of pruned trials and asks for the study's single direction
    survives(name, 200)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("tpe", 40), ("nsga2", 40), ("random", 40)])
def test_samplers_survive_pruning_in_a_database(name, count, tmp_path):
    survives(name, count, f"sqlite:///{tmp_path}/kd.db")


@pytest.mark.slow
def test_the_gaussian_process_survives_pruning():
    survives("gp", 40)


def test_a_rival_must_be_better_by_the_margin():
    near = study_of(([0.9], 10.0), ([0.89], 10.0))
    assert hopeless(near)
    assert hopeless(near, margin=(0.005, 0.0))
    assert not hopeless(near, margin=(0.02, 0.0))
    assert not hopeless(study_of(([0.9], 11.0), ([0.5], 10.0)), margin=(0.0, 2.0))


def test_a_margin_is_taken_in_the_objectives_direction():
    near = study_of(([0.10], 10.0), ([0.11], 10.0), directions=["minimize", "maximize"])
    assert hopeless(near, margin=(0.005, 0.0))
    assert not hopeless(near, margin=(0.02, 0.0))
