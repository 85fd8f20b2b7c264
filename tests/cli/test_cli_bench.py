from __future__ import annotations

import json

import pytest
from helpers.commands import PHOTOS_STUDY, refused

from kdsearch.experiments.search_bench import tables

SPACE = {"width": [8, 32, 128], "loss_weight": 0.0, "temperature": 1.0, "batch_size": [16, 64],
         "epochs": {"low": 1, "high": 4, "log": False, "step": None}}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """The path of a table of six rows."""
    rows = [
        {
            "config": {"width": width, "loss_weight": 0.0, "epochs": 4, "batch_size": batch},
            "ratio": 1000 / width,
            "accuracy": [1 - 0.5 * width**-0.2 * (1 + batch / 500) * epoch**-0.4 for epoch in range(1, 5)],
            "seconds": [1.0] * 4,
        }
        for width in (8, 32, 128)
        for batch in (16, 64)
    ]
    provenance = {"study_file": {"space": SPACE, "data": {"name": "digits", "split_seed": 0}}, "seed": 0}
    tables.save(tmp_path / "small.json.gz", provenance, rows)
    return "small.json.gz"


def test_help_names_the_commands(kdsearch):
    code, out, _ = kdsearch("bench", "--help")
    assert code == 0
    for command in ("search", "tabulate", "train", "recipes"):
        assert command in out


@pytest.mark.parametrize("name", ["table.json", "table.gz", "table"])
def test_tabulate_refuses_another_kind_of_file(kdsearch, name):
    line = refused(kdsearch("bench", "tabulate", "--out", name))
    assert line == f"--out must end with .json.gz (got {name}); give NAME.json.gz"


def test_search_refuses_an_unknown_table(kdsearch):
    refused(kdsearch("bench", "search", "--tables", "digits,nothing", "--json"), "a table must exist (got nothing)")


def test_search_refuses_another_way_to_get_plotly_before_it_replays(kdsearch, tmp_path):
    line = refused(kdsearch("bench", "search", "--tables", "nothing", "--plotlyjs", "none"))
    assert line == "--plotlyjs must be inline or cdn (got none); choose one of the two"
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_exit_with_2(kdsearch):
    assert kdsearch("bench", "search", "--seeds", "0")[0] == 2
    assert kdsearch("bench", "tabulate")[0] == 2


@pytest.mark.slow
def test_search_prints_json_alone_and_writes_reports(kdsearch, small, tmp_path):
    words = ("bench", "search", "--tables", small, "--seeds", "2", "--first-seed", "5", "--jobs", "1", "--budget", "12")
    code, out, err = kdsearch(*words, "--out", "here", "--json")
    assert code == 0, err
    whole = json.loads(out)
    (found,) = whole["tasks"].values()
    assert (found["budget"], found["seeds"]) == (12, [5, 6])
    for arm in found["arms"].values():
        assert arm["epochs_to"].keys() == {"0.95", "0.98"}
        assert all(len(quartiles) == len(whole["budgets"]) for quartiles in (arm["checkpoints"], arm["best_trials"]))
    assert len(whole["pairs"]) == len(found["arms"]) * (len(found["arms"]) - 1) // 2
    assert "report: here/bench-search.html" in err
    for name in ("bench-search.html", "bench-search.md"):
        assert "--first-seed 5" in (tmp_path / "here" / name).read_text()
    assert "https://cdn" not in (tmp_path / "here" / "bench-search.html").read_text()


@pytest.mark.slow
def test_tabulate_makes_a_table_that_search_can_read(kdsearch):
    words = ("--dataset", "digits", "--count", "2", "--epochs", "2", "--workers", "1", "--train-size", "100")
    code, out, err = kdsearch("bench", "tabulate", "--out", "t.json.gz", *words, "--device", "cpu", "--json")
    assert code == 0, err
    assert json.loads(out) == {"table": "t.json.gz", "rows": 2}
    assert tables.load("t.json.gz").epochs == 2


def test_train_refuses_what_it_cannot_measure_before_it_reads_data(kdsearch, tmp_path):
    words = "--rows must name rows of the slides that train in float (got x9)"
    refused(kdsearch("bench", "train", "--rows", "c1,x9"), words)
    refused(kdsearch("bench", "train", "--plotlyjs", "none"), "--plotlyjs must be inline or cdn")
    assert kdsearch("bench", "train", "--samples", "0")[0] == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.real_data
def test_train_prints_json_alone_and_writes_reports(kdsearch, tmp_path):
    words = ("--rows", "m7", "--device", "cpu", "--steps", "3", "--samples", "2", "--workers", "1")
    code, out, err = kdsearch("bench", "train", *words, "--plotlyjs", "cdn", "--json")
    assert code == 0, err
    found = json.loads(out)
    row = found["rows"]["m7"]
    assert (row["batch"], row["steps"], row["workers"]) == (32, 3, 1)
    assert row["losses_agree_to"] < 1e-5
    assert row["ours"] > 0
    assert json.loads((tmp_path / "reports" / "bench-train.json").read_text()) == found
    assert "report: reports/bench-train.html" in err
    assert "--steps 3" in (tmp_path / "reports" / "bench-train.md").read_text()


@pytest.mark.parametrize("given", ["nan", "inf", "1,-inf", "x"])
@pytest.mark.parametrize("option", ["--epochs", "--rates"])
def test_recipes_takes_finite_numbers_alone(kdsearch, option, given):
    line = refused(kdsearch("bench", "recipes", option, given))
    assert line == f"{option} must be numbers with commas between (got {given}); write them as 1,2,4"


def test_recipes_takes_whole_epochs_alone(kdsearch):
    line = refused(kdsearch("bench", "recipes", "--epochs", "1,1.9"))
    assert line == "--epochs must be whole numbers (got 1,1.9); write them as 1,2,4"


def test_a_teacher_that_prints_leaves_the_output_of_recipes_alone(kdsearch, photos, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_printing_teacher.py").write_text("print('imported')\ndef network(): pass\n")
    (tmp_path / "f.toml").write_text(
        PHOTOS_STUDY.replace('family = "cnn"', 'build = "a_printing_teacher:network"').replace(
            '"folder"', '"folder:photos"'
        )
    )
    result = kdsearch("bench", "recipes", "--study", "f.toml", "--student", "none", "--device", "cpu", "--json")
    assert (result.code, result.out) == (1, "")
    assert "imported" in result.err
    assert "--student must be an anchor" in result.err
