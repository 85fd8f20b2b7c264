from __future__ import annotations

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import optuna
import pytest
from hypothesis import given
from optuna.trial import TrialState, create_trial

from kdsearch import pareto
from kdsearch.experiments.search_bench import rivals
from kdsearch.experiments.search_bench.rivals import MOASHA, HubJoint, Oracle, SameEpochDominance
from kdsearch.experiments.search_bench.tables import Rows
from kdsearch.records import Attr
from kdsearch.search import space

POINTS = hnp.arrays(np.float64, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 5).map(float))


def make_study(*trials):
    """A study of (state, ratio, accuracies); the last one is asked about."""
    study = optuna.create_study(directions=["maximize"] * 2)
    for state, ratio, accuracies in trials:
        add(study, state, ratio, accuracies)
    return study


def add(study, state, ratio, accuracies, params=None, distributions=None, config=None):
    curve = {"0": [None, ratio]} | {str(t): [a, ratio] for t, a in enumerate(accuracies, start=1)}
    values = [max(accuracies), ratio] if state == TrialState.COMPLETE else None
    study.add_trial(
        create_trial(
            state=state,
            values=values,
            user_attrs={Attr.CURVE: curve, Attr.CONFIG: config},
            params=params,
            distributions=distributions,
        )
    )


def prunes(rule, *trials):
    study = make_study(*trials)
    return rule.prune(study, study.trials[-1])


DONE, RUNS, CUT, FAILED = TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED, TrialState.FAIL


@pytest.mark.parametrize("state", [DONE, RUNS, CUT])
def test_dominance_looks_at_the_same_epoch_in_any_state(state):
    late = (state, 20.0, [0.5, 0.5, 0.9])
    assert not prunes(SameEpochDominance(), late, (RUNS, 10.0, [0.6, 0.6]))
    assert prunes(SameEpochDominance(), late, (RUNS, 10.0, [0.6, 0.6, 0.6]))
    assert not prunes(SameEpochDominance(), late, (RUNS, 30.0, [0.6, 0.6, 0.6]))  # it is faster


def test_dominance_takes_the_best_checkpoint_and_no_failed_trial():
    assert not prunes(SameEpochDominance(), (DONE, 20.0, [0.6, 0.6]), (RUNS, 10.0, [0.7, 0.5]))
    assert prunes(SameEpochDominance(), (DONE, 20.0, [0.7, 0.5]), (RUNS, 10.0, [0.6, 0.6]))
    assert not prunes(SameEpochDominance(), (FAILED, 20.0, [0.9, 0.9]), (RUNS, 10.0, [0.6, 0.6]))


def test_dominance_leaves_equal_trials_alone_but_not_slower_ones():
    assert not prunes(SameEpochDominance(), (DONE, 10.0, [0.6]), (RUNS, 10.0, [0.6]))
    assert prunes(SameEpochDominance(), (DONE, 11.0, [0.6]), (RUNS, 10.0, [0.6]))


@pytest.mark.parametrize("rule", [SameEpochDominance(), MOASHA(9), HubJoint()])
def test_no_rule_prunes_before_the_first_epoch(rule):
    assert not prunes(rule, *[(DONE, 20.0, [0.9])] * 8, (RUNS, 10.0, []))


def brute_ranks(points):
    ranks, level, left = np.zeros(len(points), dtype=int), 0, list(range(len(points)))
    while left:
        front = [left[i] for i in pareto.front([points[j].tolist() for j in left])]
        ranks[front] = level
        left, level = [i for i in left if i not in front], level + 1
    return ranks.tolist()


@given(POINTS)
def test_domination_ranks_are_those_of_peeling_front_after_front(points):
    assert rivals.domination_ranks(points).tolist() == brute_ranks(points)


@given(POINTS)
def test_contribution_order_takes_the_largest_gain_each_time(points):
    front = np.unique(points[pareto.front(points.tolist())], axis=0)
    reference = np.array([-1.0, -1.0])
    order = rivals.contribution_order(front, reference)
    assert sorted(order) == list(range(len(front)))
    taken: list[tuple[float, float]] = []
    for index in order:
        gains = [pareto.hypervolume([*taken, tuple(p)], tuple(reference)) for p in front.tolist()]
        assert gains[index] == pytest.approx(max(gains))
        taken.append(tuple(front[index].tolist()))


def test_contribution_order_keeps_equal_points_together():
    points = np.array([[0.0, 3.0], [1.0, 1.0], [0.0, 3.0]])
    assert rivals.contribution_order(points, np.array([-1.0, -1.0])) == [0, 2, 1]


def test_farthest_first_covers_the_front():
    points = np.array([[0.0, 1.0], [0.1, 0.95], [0.5, 0.5], [1.0, 0.0]])
    assert rivals.farthest_first(points) == [3, 0, 2, 1]


def test_moasha_lets_the_best_third_of_a_rung_pass():
    worse = [(CUT, 10.0, [0.1]), (CUT, 10.0, [0.2])]
    assert not prunes(MOASHA(9), *worse, (RUNS, 10.0, [0.3]))
    assert prunes(MOASHA(9), *worse, (RUNS, 10.0, [0.15]))
    assert not prunes(MOASHA(9), *worse[1:], (RUNS, 10.0, [0.15]))  # fewer than eta at the rung
    assert not prunes(MOASHA(9), *worse, (RUNS, 10.0, [0.15, 0.15]))  # no rung
    assert not prunes(MOASHA(2), *[(DONE, 10.0, [0.9] * 3)] * 3, (RUNS, 10.0, [0.1] * 3))  # 3 is not below 2


def test_moasha_never_ends_who_dominates_everyone():
    random = np.random.default_rng(0)
    for _ in range(50):
        there = [(CUT, float(r), [float(a)]) for a, r in random.uniform(0.1, 0.8, (20, 2))]
        assert not prunes(MOASHA(9), *there, (RUNS, 1.0, [0.9]))
        assert prunes(MOASHA(9), *there, (RUNS, 0.01, [0.01]))


def test_moasha_breaks_ties_in_a_front_by_distance():
    crowd = [(DONE, 10.0 + i, [0.5 - 0.005 * i]) for i in range(5)]
    assert not prunes(MOASHA(9), *crowd, (RUNS, 100.0, [0.1]))  # two places of six: most accurate, and far away
    assert prunes(MOASHA(9), *crowd[:3], (DONE, 100.0, [0.1]), crowd[3], (RUNS, *crowd[4][1:]))


def test_hub_waits_for_five_finished_trials_and_ignores_running_ones_in_the_median():
    good = [(DONE, 10.0 + i, [0.9 - 0.01 * i]) for i in range(4)]
    bad = (RUNS, 1.0, [0.1])
    assert not prunes(HubJoint(), *good, bad)
    assert not prunes(HubJoint(), *good, (RUNS, 15.0, [0.8]), bad)
    assert prunes(HubJoint(), *good, (DONE, 15.0, [0.8]), bad)


def test_hub_spares_who_was_ever_on_the_first_front():
    good = [(DONE, 10.0 + i, [0.5, 0.9 - 0.01 * i]) for i in range(5)]
    assert not prunes(HubJoint(), *good, (RUNS, 1.0, [0.6, 0.6]))
    assert prunes(HubJoint(), *good, (RUNS, 1.0, [0.4, 0.6]))


def test_hub_agrees_with_optunas_median_pruner_on_the_ranks():
    random = np.random.default_rng(1)
    pruned = 0
    for _ in range(60):
        curves = np.maximum.accumulate(random.uniform(0, 1, (9, 3)), axis=1)
        ratios = random.uniform(1, 100, 9)
        trials = [(DONE, float(r), c.tolist()) for r, c in zip(ratios, curves, strict=True)]
        found = prunes(HubJoint(), *trials[:-1], (RUNS, *trials[-1][1:]))
        assert found == reference_hub(curves, ratios)
        pruned += found
    assert 5 < pruned < 55


def reference_hub(curves, ratios):
    """The rule said another way: ranks by peeling, a real MedianPruner on a study of ranks."""
    rows = []
    for step in range(curves.shape[1]):
        points = np.stack([curves[:, step], ratios], axis=1)
        ranks = np.array(brute_ranks(points), dtype=float)
        if ranks[-1] == 0:
            ranks[-1] = -1
        elif (level := np.flatnonzero(ranks == ranks[-1])).size > 1:
            worst = -points[level].min(axis=0)  # as losses
            reference = -np.maximum(1.1 * worst, 0.9 * worst)
            ranks[level[rivals.contribution_order(points[level], reference)]] -= np.linspace(0.5, 0.1, len(level))
        rows.append(ranks)
    study = optuna.create_study(direction="minimize")
    for column in np.array(rows).T[:-1]:
        study.add_trial(create_trial(value=0.0, intermediate_values=dict(enumerate(column.tolist()))))
    own = create_trial(state=RUNS, intermediate_values=dict(enumerate(np.array(rows).T[-1].tolist())))
    return optuna.pruners.MedianPruner().prune(study, own)


def oracle_action(table, rows, others, row, seen):
    study = optuna.create_study(directions=["maximize"] * 2)
    for number, epochs, state in [*others, (row, seen, RUNS)]:
        params = space.trial_parameters(table.configs[number], rows.dimensions)
        add(study, state, float(table.ratio[number]), table.accuracy[number, :epochs].tolist(), params,
            {name: rows.distributions[number][name] for name in params}, table.configs[number])  # fmt: skip
    return Oracle(rows, 9).verdict(study, study.trials[-1]).action


def test_the_oracle_goes_on_only_while_the_future_adds(table_of):
    rise, fall = [0.1 * t for t in range(1, 10)], [0.9 - 0.05 * t for t in range(1, 10)]
    low = [0.05] * 9
    table = table_of([rise, fall, low, [0.3] * 9, low, low, low, low, rise])  # rows 0 to 3 are equally fast
    rows = Rows(table, sampled_epochs=False)
    assert oracle_action(table, rows, [], 8, 0) == "prune"  # on the reference's edge: the lowest ratio of all
    table = table_of([rise, fall, low, [0.3] * 9, low, low, low, low, low, low, low, low])
    rows = Rows(table, sampled_epochs=False)
    assert oracle_action(table, rows, [], 0, 0) == "go"
    assert oracle_action(table, rows, [], 0, 8) == "go"
    assert oracle_action(table, rows, [], 1, 0) == "go"
    assert oracle_action(table, rows, [], 1, 1) == "stop"
    assert oracle_action(table, rows, [(1, 1, DONE)], 0, 3) == "go"  # 0.9 in the end, more than 0.85
    assert oracle_action(table, rows, [(1, 1, CUT)], 3, 1) == "prune"
    assert oracle_action(table, rows, [(1, 1, RUNS)], 3, 0) == "prune"


def test_the_oracle_looks_no_further_than_the_trials_own_epochs(table_of):
    rise = [0.1] * 8 + [0.9]
    table = table_of([rise, *[[0.05] * 9] * 11])
    rows = Rows(table, sampled_epochs=True)
    for epochs, action in ((9, "go"), (8, "stop")):
        study = optuna.create_study(directions=["maximize"] * 2)
        params = {**rows.params[0], "epochs": epochs}
        add(study, RUNS, float(table.ratio[0]), [0.1], params, rows.distributions[0], table.configs[0])
        assert Oracle(rows, "epochs").verdict(study, study.trials[-1]).action == action
