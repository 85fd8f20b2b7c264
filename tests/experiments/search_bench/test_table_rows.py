from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import optuna
import pytest

from kdsearch.experiments.search_bench.tables import Rows, TableSampler
from kdsearch.search import space
from kdsearch.search.sampling import samplers
from kdsearch.search.sampling.proposals import Near


def study_on(rows, inner, seed=0):
    return optuna.create_study(directions=["maximize"] * 2, sampler=TableSampler(rows, inner, seed=seed))


def test_every_row_is_found_by_its_parameters(table):
    rows = Rows(table, sampled_epochs=False)
    for row, config in enumerate(table.configs):
        assert rows.find(space.trial_parameters(config, rows.dimensions)) == row
        assert rows.ratio(config) == table.ratio[row]
    with pytest.raises(KeyError):
        rows.find({"width": 8})


@pytest.mark.parametrize("name", ["random", "tpe"])
@pytest.mark.parametrize("sampled", [False, True])
def test_a_study_holds_rows_alone_each_once_until_all_were_had(table, name, sampled):
    rows = Rows(table, sampled_epochs=sampled)
    study = study_on(rows, None if name == "random" else samplers.make(name, 1))
    had = []
    for _ in range(2 * len(rows)):
        trial = study.ask()
        config = rows.draw(trial)
        had.append(rows.find(trial.params))
        rows.take(had[-1])
        assert {**config, "epochs": 9} == table.configs[had[-1]]
        assert trial.params.get("epochs", 9) == config["epochs"]
        assert ("epochs" in trial.params) == sampled
        study.tell(trial, (0.5, 1.0))
    assert sorted(had[: len(rows)]) == sorted(had[len(rows) :]) == list(range(len(rows)))


def test_random_rows_are_equally_likely(table):
    rows = Rows(table, sampled_epochs=True)
    study = study_on(rows, None)
    drawn, epochs = Counter(), Counter()
    for _ in range(1200):  # nothing is taken
        trial = study.ask()
        epochs[rows.draw(trial)["epochs"]] += 1
        drawn[rows.find(trial.params)] += 1
    assert set(drawn) == set(range(len(rows)))
    assert set(epochs) == set(range(1, 10))
    assert max(drawn.values()) < 1.5 * 1200 / len(rows)
    assert max(epochs.values()) < 1.5 * 1200 / 9


def test_the_nearest_row_is_taken_on_a_log_scale(table):
    rows = Rows(table, sampled_epochs=False)
    held = rows.distributions[1]
    drawn = {"width": 8, "loss_weight": 0.5, "temperature": 15.0, "batch_size": 64}
    assert table.configs[rows.nearest(drawn, held)] == {**drawn, "temperature": 4.0, "epochs": 9}
    nearest = rows.nearest(drawn, held)
    rows.take(nearest)
    second = table.configs[rows.nearest(drawn, held)]
    assert second != table.configs[nearest]
    assert second["width"] == 8  # weight or batch moved, not the width and more


def test_a_draft_that_moves_is_put_on_a_row(table):
    rows = Rows(table, sampled_epochs=True)
    study = study_on(rows, None)
    for seed in range(20):
        trial = study.ask()
        config = rows.draw(trial)
        frozen = trial._cached_frozen_trial
        near = Near(samplers.make("random", seed), study, frozen, trial.params, np.random.default_rng(seed))
        config = rows.draw(near)
        row = rows.find(near.params)
        assert {**config, "epochs": 9} == table.configs[row]
        assert rows.ratio(config) == table.ratio[row]
        np.testing.assert_array_equal(rows.curves(config)[0], table.accuracy[row])
        assert near.distributions == rows.distributions[row]


def test_curves_are_the_rows_with_test_accuracy_where_the_table_holds_it(table):
    observed, true = Rows(table, sampled_epochs=False).curves(table.configs[3])
    assert observed.tolist() == true.tolist() == table.accuracy[3].tolist()
    other = dataclasses.replace(table, test=table.accuracy - 0.1)
    assert Rows(other, sampled_epochs=False).curves(table.configs[3])[1].tolist() == (table.accuracy[3] - 0.1).tolist()
    assert other.best < table.best
