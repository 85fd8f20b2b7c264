from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.recording import Recorder

from kdsearch.errors import KdsearchError
from kdsearch.experiments.search_bench import tables, tabulate
from kdsearch.search.run_options import Request
from kdsearch.spec import StudySpec

TINY = {"train_size": 200, "max_epochs": 2, "device": "cpu", "cost": "flops"}  # the session's teacher was trained so


def test_configurations_are_different_follow_the_seed_and_are_as_long_as_asked(plan):
    made = tabulate.configurations(plan, count=20, epochs=7, seed=1)
    assert len({json.dumps(config, sort_keys=True) for config in made}) == 20
    assert {config["epochs"] for config in made} == {7}
    assert made == tabulate.configurations(plan, count=20, epochs=7, seed=1)
    assert made[:10] == tabulate.configurations(plan, count=10, epochs=7, seed=1)
    assert made != tabulate.configurations(plan, count=20, epochs=7, seed=2)


def test_a_space_with_fewer_configurations_than_asked_is_refused(plan):
    few = {"width": [8, 16], "loss_weight": 1.0, "temperature": 4.0, "epochs": 3, "batch_size": 64}
    spec = StudySpec.model_validate(plan.spec.model_dump() | {"space": few, "anchors": {}})
    small = dataclasses.replace(plan, spec=spec)
    assert len(tabulate.configurations(small, count=2, epochs=3, seed=0)) == 2
    with pytest.raises(KdsearchError, match=r"--count must be at most .*\(got 3; 2 were found\)"):
        tabulate.configurations(small, count=3, epochs=3, seed=0)


def test_finished_rows_are_kept_but_not_a_line_cut_in_its_middle(tmp_path):
    out, wanted = tmp_path / "t.json.gz", {"epochs": 2}
    partial = tabulate.Partial(out, wanted)
    partial.add(3, {"test": [], "ratio": 1.0})
    partial.add(1, {"test": [], "ratio": 2.0})
    with partial.path.open("a") as file:
        file.write('{"index": 5, "ra')
    again = tabulate.Partial(out, wanted)
    assert again.rows == {3: {"test": [], "ratio": 1.0}, 1: {"test": [], "ratio": 2.0}}
    again.add(5, {"failed": "no", "ratio": 3.0})
    assert tabulate.Partial(out, wanted).rows == again.rows


def test_an_architecture_is_timed_once_and_its_timing_is_kept(plan, workshop, tmp_path):
    configs = tabulate.configurations(plan, count=6, epochs=2, seed=0)
    out, wanted = tmp_path / "t.json.gz", {"epochs": 2}
    begun = tabulate.Partial(out, wanted)
    begun.time(workshop, configs, Recorder())
    assert begun.ratios.keys() == {workshop.timing_key(config) for config in configs}
    key, timed = next(iter(begun.ratios.items()))
    assert timed["ratio"] == workshop.measure(workshop.build(configs[0], 0)).ratio
    text = begun.path.read_text().replace(json.dumps({"timed": key, **timed}), json.dumps({"timed": key, "ratio": 5.0}))
    begun.path.write_text(text)
    again = tabulate.Partial(out, wanted)
    again.time(workshop, configs, Recorder())
    assert again.ratios == begun.ratios | {key: {"ratio": 5.0}}


def test_rows_of_other_options_are_refused(tmp_path):
    tabulate.Partial(tmp_path / "t.json.gz", {"epochs": 2})
    with pytest.raises(KdsearchError, match="same options"):
        tabulate.Partial(tmp_path / "t.json.gz", {"epochs": 3})


def test_rows_without_test_accuracies_are_refused(tmp_path):
    tables.save(tmp_path / "t.json.gz", {"epochs": 2}, [{"accuracy": [0.5, 0.6]}])
    with pytest.raises(KdsearchError, match="test accuracies"):
        tabulate.Partial(tmp_path / "t.json.gz", {"epochs": 2})


@pytest.mark.slow
def test_a_table_goes_on_where_it_stopped_and_comes_out_alike(tmp_path, teacher):
    options, asked = {"count": 3, "epochs": 2, "seed": 1}, Request(dataset="digits", **TINY)
    whole, cut = tmp_path / "whole.json.gz", tmp_path / "cut.json.gz"
    first, second = Recorder(), Recorder()
    assert tabulate.tabulate(whole, asked, workers=1, progress=first, **options) == whole
    table = tables.load(str(whole))
    assert (table.accuracy.shape, table.epochs) == ((3, 2), 2)
    for accuracy in (table.accuracy, table.test):
        assert ((accuracy > 0) & (accuracy <= 1)).all()
    assert (table.accuracy != table.test).any()  # of other images
    assert table.provenance["seed"] == 1
    assert table.provenance["images"]["train"] == 200
    assert table.provenance["environment"]["device"] == "cpu"
    assert not list(tmp_path.glob("*.partial"))
    begun = tabulate.Partial(cut, {key: table.provenance[key] for key in ("study_file", "epochs", "seed")})
    kept = {"config": table.configs[1], "ratio": 5.0, "low": 5.0, "high": 5.0, "parameters": 1,
            "accuracy": [0.25, 0.5], "test": [0.25, 0.5], "seconds": [1.0, 1.0]}  # fmt: skip
    begun.add(1, kept)
    tabulate.tabulate(cut, asked, workers=2, progress=second, **options)
    again = tables.load(str(cut))
    assert again.accuracy[1].tolist() == [0.25, 0.5]  # not trained again
    assert again.accuracy[[0, 2]].tolist() == table.accuracy[[0, 2]].tolist()
    assert again.configs == table.configs
    assert [told.totals[0][:2] for told in (first, second)] == [(0, 3), (1, 3)]
    assert sorted(number for number, _, _ in second.finished) == [0, 2]
    longer = Recorder()
    tabulate.tabulate(cut, asked, workers=1, progress=longer, **options | {"count": 4})
    assert tables.load(str(cut)).accuracy[:3].tolist() == again.accuracy.tolist()
    assert [number for number, _, _ in longer.finished] == [3]
    before = cut.read_bytes()
    with pytest.raises(KdsearchError, match="same options"):
        tabulate.tabulate(cut, asked, workers=1, progress=longer, **options | {"epochs": 1})
    assert cut.read_bytes() == before
