"""Other people's searches: the accounting always, themselves where their packages are installed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from kdsearch import pareto
from kdsearch.experiments.search_bench import comparison, peers
from kdsearch.experiments.search_bench import run as search
from kdsearch.experiments.search_bench.peers import Bench
from kdsearch.experiments.search_bench.problems import Family
from kdsearch.experiments.search_bench.replay import Run

PARAMS = {"width": 64, "rate": 1e-2, "momentum": 0.5, "idle": 0.1}
OTHER = PARAMS | {"width": 16}


@pytest.fixture
def family() -> Family:
    return Family("power-law", epochs=9)


def test_epochs_are_counted_once_and_go_on_where_they_were_left(family):
    run = Run(search.PEERS["primo"], 0)
    bench = Bench(family, run, 23)
    observed = family.curves(PARAMS)[0]
    assert [(epoch, round(1 - values[0], 9)) for epoch, values in bench.epochs(PARAMS, 3)] == [
        (epoch, round(float(observed[epoch - 1]), 9)) for epoch in (1, 2, 3)
    ]
    assert [epoch for epoch, _ in bench.epochs(PARAMS, 9)] == [4, 5, 6, 7, 8, 9]
    assert (run.spent, run.trials, bench.over) == (9, 1, False)
    assert [epoch for epoch, _ in bench.epochs(PARAMS, 9)] == list(range(1, 10))  # asked for again, so trained anew
    assert (run.spent, run.trials, bench.over) == (18, 2, False)
    assert [epoch for epoch, _ in bench.epochs(OTHER, 9)] == [1, 2, 3, 4, 5]  # the budget is spent
    assert (run.spent, run.trials, bench.over) == (23, 3, True)
    points = [(float(observed[8]), family.ratio(PARAMS)), (float(family.curves(OTHER)[0][4]), family.ratio(OTHER))]
    expected = search_hypervolume(family, points)
    assert run.checkpoints[-1] == (23, pytest.approx(expected))
    assert run.best_trials[-1] == (23, pytest.approx(expected))
    assert bench.values(OTHER, 5)[1] == pytest.approx(-np.log10(family.ratio(OTHER)))


def search_hypervolume(family, points):
    return pareto.hypervolume([(accuracy, float(np.log10(ratio))) for accuracy, ratio in points], family.reference)


def test_a_trial_that_its_peer_stops_counts_with_its_best_checkpoint(family):
    run = Run(search.PEERS["syne-moasha"], 0)
    for epoch, _ in Bench(family, run, 99).epochs(PARAMS, 9):
        if epoch == 4:
            break
    assert run.spent == 4
    assert run.best_trials == [(4, run.checkpoints[-1][1])]


def test_only_what_is_installed_is_an_arm():
    assert set(peers.installed()) <= set(peers.PACKAGES)
    assert peers.version("ours") is None
    compared = search.arms(full=False, sampled=False)
    assert [arm.method for arm in compared if arm.sampler == "own"] == peers.installed()
    assert not any(arm.sampler == "own" for arm in search.arms(full=True, sampled=True))


@pytest.mark.slow
@pytest.mark.peers
@pytest.mark.parametrize("method", peers.PACKAGES)
def test_a_peer_spends_its_budget_alike_by_its_seed(family, method):
    if peers.version(method) is None:
        pytest.skip(f"{peers.PACKAGES[method]} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these packages and theirs say when they are imported
        first, again, other = (peers.search(family, Run(search.PEERS[method], seed), 60) for seed in (0, 0, 1))
    assert first.spent == again.spent == 60
    assert first.checkpoints == again.checkpoints != other.checkpoints
    assert comparison.at(first.checkpoints, 60) > 0.5 * family.best
