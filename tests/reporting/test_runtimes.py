from __future__ import annotations

import json
import math
from typing import Any

import optuna
import pytest
from helpers.elsewhere import MEASURED, PI, TORCH, measured
from markupsafe import escape

from kdsearch.reporting import runtimes
from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.measured import Measured
from kdsearch.reporting.pages import study_page, text
from kdsearch.reporting.runtimes import Column

EXPORTED = {"trial": 3, "format": "onnx", "runtime": "onnxruntime 1.32.0", "ratio": 70.0, "low": 69.0, "high": 71.0,
            "teacher_seconds": 0.5, "student_seconds": 0.01, "batch": 1000}  # fmt: skip
FRONT = [4, 3, 0]  # of the typical study, by ratio


def stored(*found: Measured) -> dict[str, Any]:
    return {each.key: each.stored() for each in found}


def test_a_study_that_was_measured_nowhere_else_says_nothing(data: StudyData):
    assert runtimes.columns(data) == []
    assert runtimes.view(data) is None
    assert runtimes.result(data) is None
    assert runtimes.figure(data) is None
    assert runtimes.sentence([], FRONT) == ""
    assert "Runtimes" not in study_page.render(data, plotlyjs="cdn")
    assert "## Runtimes" not in study_page.as_markdown(data)


def test_each_runtime_and_device_is_a_column_beside_the_searchs_own(typical: optuna.Study, gather):
    found = runtimes.columns(gather(typical, stored(*MEASURED) | {"exported:3:onnx": EXPORTED}))
    titles = [column.title for column in found]
    assert titles == ["the search", "torch", "ONNX Runtime", "exported onnx", "Raspberry Pi 5"]
    assert found[0].cells[3] == (100.0, 98.0, 102.0)
    assert sorted(found[2].cells) == [0, 3, 4]
    assert found[2].cells[3] == pytest.approx((60.0, 54.0, 66.0))
    assert found[4].what == "onnxruntime 1.32.0, Raspberry Pi 5, 4 threads, 1,000 images a batch, 2026-11-25"
    assert found[3].cells == {3: (70.0, 69.0, 71.0)}


def test_columns_that_would_be_called_alike_say_what_tells_them_apart(typical: optuna.Study, gather):
    found = runtimes.columns(gather(typical, stored(
        measured(3, 1.0, device="a"), measured(3, 2.0, device="b"),
        measured(3, 3.0, **PI), measured(3, 4.0, **PI, batch=1), measured(3, 5.0, **PI | {"threads": 1}),
        measured(3, 6.0, **PI, provider="XNNPACK"),
        measured(3, 7.0, source="device", device="x" * 100), measured(3, 8.0, source="device", device="x" * 101),
    )))  # fmt: skip
    titles = [column.title for column in found]
    assert len(set(titles)) == len(titles) == 9
    assert {"ONNX Runtime on a", "ONNX Runtime on b", "Raspberry Pi 5, XNNPACK", "Raspberry Pi 5, batch 1",
            "Raspberry Pi 5, batch 1000, 4 threads", "Raspberry Pi 5, batch 1000, 1 thread"} <= set(titles)  # fmt: skip
    assert max(map(len, titles)) <= runtimes.LONGEST + 4


def columns(
    *others: dict[int, tuple[float, float, float]], ratios: tuple[float, ...] = (10, 20, 30, 40)
) -> list[Column]:
    """The search's column of trials 1 to 4, with intervals of 5 %, and others called a, b, ..."""
    search = {i: (ratio, 0.95 * ratio, 1.05 * ratio) for i, ratio in enumerate(ratios, 1)}
    return [
        Column("the search", "in the search", "", search),
        *(Column("abc"[i], f"in {'abc'[i]}", "", cells) for i, cells in enumerate(others)),
    ]


def cells(*ratios: float, spread: float = 0.05) -> dict[int, tuple[float, float, float]]:
    return {i: (r, (1 - spread) * r, (1 + spread) * r) for i, r in enumerate(ratios, 1)}


SAME = "the order of the 4 students is that of the search"
NONE = "Fewer than two students of the front were measured outside of the search: there is no order to compare."


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (columns(cells(1, 2, 3, 4)), f"In a {SAME}."),
        (columns(cells(1, 2, 3, 4), cells(5, 6, 7, 8)), f"In a and in b {SAME}."),
        (columns(cells(1, 2, 3, 4), cells(5, 6, 7)), f"In a {SAME}; in b {SAME.replace('4', '3')}."),
        (columns(cells(1, 2, 4, 3)), "In a trials 3 and 4 (intervals apart) change places."),
        (columns(cells(1, 2, 4, 3.9)), "In a trials 3 and 4 (within noise) change places."),
        (columns(cells(1, 2, 4, 3), ratios=(10, 20, 30, 31)), "In a trials 3 and 4 (within noise) change places."),
        (columns(cells(2, 1, 4, 3), cells(1, 2, 3, 4)),
         f"In b {SAME}; in a trials 1 and 2 (intervals apart), and 3 and 4 (intervals apart) change places."),
        (columns(cells(4, 3, 2, 1)), "In a 6 of 6 pairs of students change places, intervals apart for 6."),
        (columns(cells(4, 3, 2, 1, spread=0.9)),
         "In a 6 of 6 pairs of students change places, intervals apart for none."),
        (columns(cells(1, 2, 4, 3), ratios=(10, 20, 30, 30)), f"In a {SAME}."),
        (columns({1: (5, 4, 6)}), NONE),
        (columns({1: (5, 4, 6), 9: (4, 3, 5)}), NONE),
    ],
)  # fmt: skip
def test_the_sentence_says_who_changes_places(found: list[Column], said: str):
    assert runtimes.sentence(found, [1, 2, 3, 4]) == said


def test_a_swap_without_an_interval_is_noise():
    found = columns(cells(1, 2, 4, 3))
    found[0].cells[4] = (40.0, math.nan, math.nan)
    assert "3 and 4 (within noise)" in runtimes.sentence(found, [1, 2, 3, 4])


def test_page_markdown_and_json_hold_the_same(complete: optuna.Study, gather):
    complete.set_user_attr("exported:2:onnx", EXPORTED | {"trial": 2})
    data = gather(complete)
    source, markdown = study_page.render(data, plotlyjs="cdn"), study_page.as_markdown(data)
    found = json.loads(text.as_json(data))["runtimes"]
    sentence = (
        "In torch the order of the 3 students is that of the search; in ONNX Runtime trials 3 and 0 (within noise) "
        "change places; on Raspberry Pi 5 trials 3 and 0 (intervals apart) change places."
    )
    assert found["sentence"] == sentence
    assert f"<p>{escape(sentence)}</p>" in source
    assert "## Runtimes\n\nIn torch the order" in markdown
    places = [source.index(f">{title}") for title in ("The front</h2>", "Runtimes</h2>", "The slides")]
    assert places == sorted(places)
    for cell in ("60.0 (54.0 to 66.0)", "290 (287 to 293)", "40.0 (39.6 to 40.4)", "70.0 (69.0 to 71.0)"):
        assert f'<td class="n">{cell}</td>' in source
        assert f"| {cell} |" in markdown
    assert "2 (not on the front) |" in markdown
    columns = {column["title"]: column["trials"] for column in found["columns"]}
    assert columns["torch"][0] == {"trial": 4, "ratio": 19.0, "low": pytest.approx(18.81), "high": pytest.approx(19.19)}
    assert [row["trial"] for row in columns["the search"]] == [4, 3, 0, 2]


def test_the_figure_joins_a_students_ratios_over_runtimes(complete: optuna.Study, gather):
    drawn = runtimes.figure(gather(complete))
    assert drawn is not None
    *lines, numbers = drawn.data
    assert [line.name for line in lines] == ["trial 4", "trial 3", "trial 0"]
    assert drawn.layout.xaxis.ticktext == ("the search", "torch", "ONNX Runtime", "Raspberry Pi 5")
    assert lines[0].y[3] is None
    assert numbers.text == ("4", "3", "0")


def test_ratios_that_nobody_would_believe_are_drawn_all_the_same(typical: optuna.Study, gather, make_trial):
    typical.add_trial(make_trial([0.5], 1e308))
    drawn = runtimes.figure(gather(typical, stored(measured(3, 1e-9), measured(4, 1e11), measured(7, 5.0))))
    assert drawn is not None
    assert len(drawn.data) == 4
    low, high = drawn.layout.yaxis.range
    assert low < -9 < 11 < high < 20


def test_one_student_alone_is_a_table_without_a_figure(typical: optuna.Study, gather):
    data = gather(typical, stored(measured(3, 50.0)) | {"exported:3:onnx": EXPORTED})
    assert runtimes.figure(data) is None
    found = runtimes.view(data)
    assert found is not None
    assert [row["number"] for row in found["rows"]] == FRONT
    assert found["rows"][0]["cells"][1:] == ["–", "–"]
    assert ">Runtimes</h2>" in study_page.render(data, plotlyjs="cdn")


def test_a_measurement_of_a_trial_that_is_not_there_is_left_out(typical: optuna.Study, gather):
    assert runtimes.columns(gather(typical, stored(measured(99, 50.0), measured(98, 5.0, **TORCH)))) == []
