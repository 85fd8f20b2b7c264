from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from kdsearch import pareto
from kdsearch.experiments.search_bench import tables
from kdsearch.experiments.search_bench.problems import Family
from kdsearch.experiments.search_bench.replay import METHODS, Archive, Arm, Replay, replay
from kdsearch.records import Attr
from kdsearch.search import resuming
from kdsearch.search.budget import epochs_run, epochs_spent

ARMS = [
    *(Arm("random", "all", method) for method in METHODS),
    *(Arm("random", "sampled", method) for method in ("none", "pruner", "ours")),
    Arm("tpe", "sampled", "ours"),
    Arm("nsga2", "sampled", "none"),
    Arm("random", "all", "ours", 4),
]


def hypervolume(points, table):
    return pareto.hypervolume([(a, math.log10(r)) for a, r in points], table.reference)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.key)
def test_the_figures_of_a_replay_add_up(table, arm):
    one = Replay(table, arm, seed=3, budget=70)
    run = one.run()
    trials = one.study.trials
    epochs = [epochs_run(trial) for trial in trials]
    assert run.spent == epochs_spent(trials) <= 70
    if arm.method != "oracle":  # which may run out of rows
        assert run.spent == 70
    assert run.trials == len(trials)
    assert run.trained + run.resumed >= sum(count > 0 for count in epochs)
    assert not any(trial.state == TrialState.RUNNING for trial in trials)
    members = [trial.values for trial in one.study.best_trials]
    assert run.best_trials[-1][1] == pytest.approx(hypervolume(members, table))
    seen = [point for trial in trials for point in trial.user_attrs[Attr.CURVE].values() if point[0] is not None]
    assert run.checkpoints[-1][1] == pytest.approx(hypervolume(seen, table))
    assert run.by_truth[-1][1] >= run.checkpoints[-1][1] - 1e-12
    for steps in (run.best_trials, run.checkpoints, run.by_truth):
        assert steps == sorted(set(steps))
        assert all(epoch <= run.spent for epoch, _ in steps)
    assert run.checkpoints[-1][1] >= run.best_trials[-1][1] - 1e-12


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.key)
def test_a_replay_is_alike_by_its_seed(table, arm):
    def told(seed):
        one = Replay(table, arm, seed=seed, budget=40)
        one.run()
        return [(trial.params, trial.state, trial.user_attrs[Attr.CURVE]) for trial in one.study.trials]

    assert told(5) == told(5)
    assert told(5) != told(6)


def test_every_trial_reads_its_own_row_and_returns_its_best_checkpoint(table):
    table.accuracy[0, :] = np.linspace(0.9, 0.5, 9)
    one = Replay(table, Arm("random", "all", "none"), seed=0, budget=9 * len(table.configs))
    one.run()
    rows = {tuple(sorted(config.items())): row for row, config in enumerate(table.configs)}
    assert len(one.study.trials) == len(rows)
    for trial in one.study.trials:
        row = rows.pop(tuple(sorted(trial.user_attrs[Attr.CONFIG].items())))
        curve = [trial.user_attrs[Attr.CURVE][str(epoch)][0] for epoch in range(1, 10)]
        assert curve == table.accuracy[row].tolist()
        assert trial.values == [max(curve), table.ratio[row]]
    assert not rows


def test_the_last_trial_is_cut_at_the_budget_and_counts(table):
    one = Replay(table, Arm("random", "all", "none"), seed=0, budget=13)
    run = one.run()
    first, last = one.study.trials
    assert [len(trial.user_attrs[Attr.CURVE]) - 1 for trial in (first, last)] == [9, 4]
    assert last.state == TrialState.COMPLETE
    assert last.values[0] == last.user_attrs[Attr.CURVE]["4"][0]
    assert run.spent == 13


def test_trials_limit_ends_a_replay_without_a_budget(table):
    run = replay(table, Arm("tpe", "sampled", "none"), seed=0, trials=15)
    assert run.trials == run.trained == 15
    assert 15 < run.spent < 15 * 9


def test_workers_see_each_other_and_share_the_budget(table):
    one = Replay(table, Arm("random", "all", "none", 4), seed=0, budget=10)
    one.run()
    assert [len(trial.user_attrs[Attr.CURVE]) - 1 for trial in one.study.trials] == [3, 3, 2, 2]


def test_a_refused_trial_costs_nothing_and_a_replay_without_rows_left_ends(table):
    run = replay(table, Arm("random", "all", "oracle"), seed=0, budget=10_000)
    assert run.spent < 9 * len(table.configs)
    assert run.best_trials[-1][1] == pytest.approx(table.best)
    assert run.trained < run.trials


def test_a_stopped_trial_is_complete_and_a_pruned_one_is_not(table):
    one = Replay(table, Arm("random", "all", "pruner"), seed=1, budget=200)
    one.run()
    states = {trial.state for trial in one.study.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}
    assert any(Attr.AUDIT in trial.user_attrs for trial in one.study.trials)
    for trial in one.study.trials:
        if Attr.STOPPED_AT in trial.user_attrs:
            assert trial.state == TrialState.COMPLETE


def test_a_resumed_trial_repeats_the_ended_ones_curve_and_costs_the_rest(monkeypatch):
    monkeypatch.setattr(resuming, "MARGIN", 0.0)
    one = Replay(Family("late-bloomers"), Arm("random", "all", "resume"), seed=0, budget=200)
    run = one.run()
    trials = one.study.trials
    pairs = [(trials[t.user_attrs[Attr.RESUMES]], t) for t in trials if Attr.RESUMES in t.user_attrs]
    assert run.resumed == len(pairs) > 0
    assert run.spent == epochs_spent(trials) == 200
    for before, after in pairs:
        assert after.params == before.params
        assert after.user_attrs[Attr.RESUMED] == epochs_run(before)
        assert after.user_attrs[Attr.CURVE].items() >= before.user_attrs[Attr.CURVE].items()
        assert Attr.AUDIT not in after.user_attrs  # an audit is of trials drawn at random


def test_the_archive_holds_what_hypervolume_says(table):
    random = np.random.default_rng(0)
    steps, points, before = [], [], 0.0
    archive = Archive((0.2, 0.0), steps)
    for accuracy, ratio in random.uniform(0.1, 1.0, (60, 2)) * [1, 100]:
        points.append((float(accuracy), math.log10(ratio)))
        archive.add(len(points), float(accuracy), float(ratio), float(accuracy))
        assert archive.hypervolume == pytest.approx(pareto.hypervolume(points, (0.2, 0.0)))
        assert ((len(points), archive.hypervolume) in steps) == (archive.hypervolume > before)
        before = archive.hypervolume


def test_the_front_is_chosen_by_observed_values_and_valued_by_true_ones():
    steps = []
    archive = Archive((0.0, 0.0), steps)
    for spent, observed, true in ((1, 0.5, 0.5), (2, 0.9, 0.3), (3, 0.6, 0.6)):
        archive.add(spent, observed, 10.0, true)
    assert steps == [(1, 0.5), (2, pytest.approx(0.3))]  # a lucky one, which displaces a better student


def test_an_arms_key_is_its_own():
    assert len({arm.key for arm in ARMS}) == len(ARMS)
    assert Arm("random", "all", "ours", 4).key == "random/all/ours/4"


@pytest.mark.slow
def test_on_digits_the_oracle_beats_no_pruning():
    table = tables.load("digits")
    level = 0.98 * table.best

    def median(method):
        runs = [replay(table, Arm("random", "all", method), seed=1000 + seed, budget=1500) for seed in range(10)]
        return np.median([next((e for e, v in run.best_trials if v >= level), 1500) for run in runs])

    assert median("none") > 1.4 * median("oracle")


def test_what_a_pruner_sees_is_an_ordinary_study(table):
    one = Replay(table, Arm("random", "sampled", "ours"), seed=0, budget=30)
    assert isinstance(one.study, optuna.Study)
    assert one.study.directions == [optuna.study.StudyDirection.MAXIMIZE] * 2
    assert one.study.pruner._max_steps == "epochs"
