from __future__ import annotations

import json

import pytest
from helpers.commands import Run, refused

from kdsearch.experiments.slides import training


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("slides", "--dataset", "digits"), ("mnist and cifar10", "digits")),
        (("slides", "--rows", "m1,c5"), ("c5", "m1,m2")),
        (("slides", "--reading", "literal"), ("--reading", "stated, published, both")),
        (("slides", "--width", "8"), ("--width", "leave it out")),
        (("slides", "--plotlyjs", "magic"), ("inline", "magic")),
        (("claims", "--dataset", "cifar10"), ("digits or mnist", "cifar10")),
        (("claims", "--seeds", "4"), ("at least 5", "--seeds")),
        (("claims", "--only", "10"), ("claims 1 to 9", "10")),
        (("claims", "--plotlyjs", "magic"), ("inline", "magic")),
    ],
)
def test_bad_input_gets_one_line_before_any_work(kdsearch: Run, words, expected, tmp_path):
    refused(kdsearch(*words), *expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_claims_prints_json_alone_and_writes_its_pages(kdsearch: Run, tmp_path):
    result = kdsearch("claims", "--only", "5,6", "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert [(one["claim"], one["verdict"]) for one in found["claims"]] == [(5, "confirmed"), (6, "confirmed")]
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [
        "claims.html", "claims.json", "claims.md"
    ]  # fmt: skip
    assert "report: reports/claims.html" in result.err


@pytest.mark.slow
@pytest.mark.real_data
def test_slides_on_mnist_go_on_and_leave_the_search_alone(kdsearch: Run, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "PAIRS", 1)
    for name in ("MIN_PAIRS", "MAX_PAIRS"):
        monkeypatch.setattr(f"kdsearch.measure.latency.{name}", 2)
    words = ("slides", "--dataset", "mnist", "--rows", "m1", "--train-size", "2000", "--max-epochs", "1", "--json")
    first = json.loads(kdsearch(*words, "--repeats", "1").out)
    assert [(row["row"], row["verdict"]) for row in first["rows"]] == [("m1", "not measured")]
    assert 20 < first["rows"][0]["measured"]["accuracy"]["mean"] < 90
    assert first["teacher"]["accuracy"] > 50
    again = kdsearch(*words, "--repeats", "2")
    assert "the study holds 1 finished trials; going on to 2" in again.err
    second = json.loads(again.out)
    assert second["rows"][0]["measured"]["accuracies"][0] == first["rows"][0]["measured"]["accuracies"][0]
    refused(kdsearch(*words[:-2], "2"), "max_epochs: 1 -> 2", "--name")
    # the rows' study does not stand in the way of the only search
    refused(kdsearch("report"), "--name must say which study (studies there: none yet)")
