from __future__ import annotations

import dataclasses
import json

import optuna
import pytest

from kdsearch.experiments.slides import page, run, summary
from kdsearch.experiments.slides.deck import choose
from kdsearch.records import Attr
from kdsearch.stats import difference_from_one_run, mean_interval, proportion_interval, sittings_interval


@pytest.fixture
def made(options):
    """A study of made-up trainings: accuracies by row, the same timing for each."""

    def make(accuracies: dict[str, list[float]], **changes) -> tuple[optuna.Study, run.Options]:
        chosen = dataclasses.replace(
            options, jobs=choose("mnist", ",".join(accuracies), "stated"),
            repeats=max(map(len, accuracies.values())), **changes,
        )  # fmt: skip
        study = optuna.create_study(directions=["maximize"] * 2)
        facts = {"family": "cnn", "accuracy": 0.975, "validation_accuracy": 0.97, "seconds": 200.0}
        study.set_user_attr("teacher", facts | {"parameters": 10, "bytes": 40, "fingerprint": "f"})
        for row, values in accuracies.items():
            for repeat, value in enumerate(values):
                attrs = {
                    Attr.ROW: row, Attr.READING: "stated", Attr.REPEAT: repeat, Attr.TEST_ACCURACY: value,
                    Attr.PAIRS: [[6.0 + repeat, 6.0], [0.05, 0.06]], Attr.TRAIN_SECONDS: 10.0 + repeat,
                    Attr.PARAMETERS: 100, Attr.BYTES: 400,
                }  # fmt: skip
                if row == "mq":
                    attrs[Attr.INT8] = {"trained_accuracy": value, "float_seconds": [0.1, 0.12], "float_bytes": 900,
                                        "float_products": 0}  # fmt: skip
                study.add_trial(optuna.trial.create_trial(values=[value, 100.0], user_attrs=attrs))
        return study, chosen

    return make


def test_a_row_has_its_mean_over_seeds_and_the_interval_of_one_published_run(made):
    values = [0.95, 0.955, 0.953]
    (found,) = summary.summarise(*made({"m1": values}))
    assert found.accuracies == pytest.approx([95.0, 95.5, 95.3])
    assert found.accuracy.low == pytest.approx(100 * mean_interval(values).low)
    expected = difference_from_one_run(values, 0.9597, 10_000)
    assert (found.difference.mean, found.difference.high) == pytest.approx((100 * expected.mean, 100 * expected.high))
    over = sittings_interval([110.0, 120.0, 130.0])  # the medians of each repeat's pairs: 120 and 100, 140 and 100, ...
    assert found.ratio == pytest.approx((over.mean, over.low, over.high))
    assert found.teacher_seconds == pytest.approx(6.0e-4)
    assert found.seconds == 11.0


def test_one_repeat_has_the_interval_of_its_test_images(made):
    study, options = made({"m1": [0.95]})
    (found,) = summary.summarise(study, options)
    expected = proportion_interval(0.95, 10_000)
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((100 * expected.low, 100 * expected.high))
    assert found.accuracy.n == 1
    assert summary.as_json(study, options, [found])["rows"][0]["measured"]["accuracy"]["interval"] == "test images"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.9590, 0.9605, 0.9600], "matches"),
        ([0.9597, 0.9598, 0.9599], "matches"),
        ([0.9550, 0.9640, 0.9600], "undecided"),  # its interval holds 0, and a point either way
        ([0.9597], "matches"),
        ([0.9580], "undecided"),
        ([0.9690, 0.9695, 0.9700], "higher"),
        ([0.9500, 0.9505, 0.9510], "lower"),
    ],
)
def test_one_word_a_row(made, values, verdict):
    (found,) = summary.summarise(*made({"m1": values}))
    assert found.verdict == verdict


def test_the_order_of_the_rows_is_compared(made):
    values = {"m1": [0.958, 0.959], "m2": [0.973, 0.974], "m4": [0.963, 0.964], "m9": [0.97, 0.9705]}
    study, options = made(values)
    measured = summary.summarise(study, options)
    found = summary.order(measured)
    assert found.mean == pytest.approx(1.0)
    assert 0.3 < found.low <= found.high <= 1.0
    assert "Kendall's tau 1.00" in " ".join(page.report(study, options, measured).sections[0].text)
    assert summary.as_json(study, options, measured)["order"]["kendall_tau"]["n"] == 4
    assert summary.order(measured[:2]) is None


def test_a_smaller_run_measures_no_row(made):
    study, options = made({"m1": [0.6, 0.61]}, train_size=100)
    measured = summary.summarise(study, options)
    assert [one.verdict for one in measured] == ["not measured"]
    assert "measures no row" in page.report(study, options, measured).verdict


def test_only_what_was_measured_is_summarised(made):
    study, options = made({"m1": [0.95, 0.95], "m7": [0.96]})
    assert [len(one.accuracies) for one in summary.summarise(study, options)] == [2, 1]
    more = dataclasses.replace(options, jobs=choose("mnist", "m1,m9", "stated"))
    assert [one.job.row.name for one in summary.summarise(study, more)] == ["m1"]


def test_the_json_has_the_shape_that_was_promised(made):
    study, options = made({"m1": [0.95, 0.955], "mq": [0.96, 0.961]})
    found = json.loads(json.dumps(summary.as_json(study, options, summary.summarise(study, options)), allow_nan=False))
    row, int8 = found["rows"]
    assert row["row"] == "m1"
    assert row["published"] == {"accuracy": 95.97, "ratio": 315.332, "seconds": 30.998}
    assert set(row["measured"]["accuracy"]) >= {"mean", "low", "high", "n"}
    assert set(row["measured"]["ratio"]) == {"median", "low", "high"}
    assert row["measured"]["seconds"] == 10.5
    assert row["verdict"] in ("matches", "higher", "lower", "undecided")
    assert int8["published"] == {"accuracy": None, "ratio": None, "seconds": None}
    assert found["teacher"]["accuracy"] == 97.5
    assert found["teacher"]["published"] == {"accuracy": 97.41}


def test_an_int8_row_says_what_int8_gains(made):
    (found,) = summary.summarise(*made({"mq": [0.96] * 4}))
    assert found.int8.gain == pytest.approx((2.0, 2.0, 2.0))
    assert found.int8.float_ratio == pytest.approx(67.5, rel=0.3)
    assert found.verdict == "faster"
    assert [dataclasses.replace(found.int8, gain=gain).verdict for gain in ((1, 0.9, 1.1), (0.8, 0.7, 0.9))] == [
        "even", "slower"
    ]  # fmt: skip


def test_the_page_holds_every_row_its_word_and_where_it_comes_from(made, tmp_path):
    study, options = made({"m1": [0.94, 0.941, 0.942], "m7": [0.972, 0.973, 0.9725], "mq": [0.97, 0.971, 0.972]})
    study.set_user_attr("command", "kdsearch slides --dataset mnist")
    measured = summary.summarise(study, options)
    path = page.write(study, options, measured, tmp_path, plotlyjs="cdn")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "slides-mnist.html", "slides-mnist.json", "slides-mnist.md"
    ]  # fmt: skip
    marked = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| m1 | 95.97 | 94.10 |" in marked
    assert "m1 comes out 1.87 points lower. The deck leaves open here" in marked
    assert "9 published; the published figure may be of the other choice" in marked
    assert "1 of 2 rows are shown to match the deck's accuracy within 0.5 points; higher: 0, lower: 1" in marked
    assert "kdsearch slides --dataset mnist" in marked
    assert "| mq | 97.10 |" in marked
    html = path.read_text(encoding="utf-8")
    assert html.count('class="plot"') == 2
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["rows"][0]["row"] == "m1"


def test_rows_without_a_published_figure_are_compared_with_none(made):
    study, options = made({"mq": [0.97]})
    found = page.report(study, options, summary.summarise(study, options))
    assert found.verdict == "No row that has a published figure was measured."
    assert found.sections[0].title == "The deck's quantised algorithm"


def test_the_figures_draw_each_training_and_the_published_figure(made):
    study, options = made({"m1": [0.94, 0.941], "m7": [0.972, 0.973]})
    sections = page.report(study, options, summary.summarise(study, options)).sections
    measured, published = sections[0].figure.data
    assert list(measured.x) == ["m1", "m1", "m7", "m7"]
    assert list(measured.y) == pytest.approx([94.0, 94.1, 97.2, 97.3])
    assert list(published.y) == [95.97, 97.26]
    ratio = sections[1].figure.data[0]
    assert list(ratio.y) == pytest.approx([one.ratio[0] for one in summary.summarise(study, options)], rel=1e-3)


def test_a_line_a_row_for_a_terminal(made):
    lines = page.text(summary.summarise(*made({"m1": [0.95, 0.951], "mq": [0.96, 0.961]}))).splitlines()
    assert lines[0].startswith("m1 ")
    assert "published 95.97 % and 315.3: " in lines[0]
    assert "int8 is 2.00 times as fast as float: faster" in lines[1]
