from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import create_trial

from kdsearch.reporting.collect import StudyData
from kdsearch.reporting.figures import curves, front
from kdsearch.reporting.figures.layers import beside, curve_groups, layers, spread


def named(figure, name):
    (trace,) = [t for t in figure.data if (t.name or "").startswith(name) and "labels" not in t.name]
    return trace


def test_layers_sort_the_trials(data: StudyData):
    found = layers(data)
    assert {name: [*frame["trial"].dropna()] for name, frame in found.items()} == {
        "dominated": [1, 2], "pruned": [5], "front": [4, 3, 0], "published": [], "recipe": [],
        "measured": [0, 1, 2], "confirmed": [], "teacher": [],
    }  # fmt: skip
    assert [*found["front"]["percent"]] == pytest.approx([97.8, 96.9, 94.1])
    assert [*found["front"]["low"]] == pytest.approx([19.6, 98.0, 294.0])
    assert [*found["published"]["label"]] == [f"m{i}" for i in range(1, 10)]
    assert found["published"]["percent"][0] == pytest.approx(95.97)
    assert (found["teacher"]["ratio"][0], found["teacher"]["percent"][0]) == (1.0, 97.0)


def test_layers_on_validation_have_no_published_accuracy(data: StudyData):
    found = layers(data, "accuracy")
    assert [*found["front"]["percent"]] == pytest.approx([98.0, 97.0, 94.0])
    assert found["published"]["percent"].isna().all()
    assert found["teacher"]["percent"][0] == 96.0


def test_hover_tells_the_trial_and_escapes_what_it_says(make_trial, gather):
    trial = make_trial([0.9], 5.0, config={"<img src=x>": 1}, anchor="m1")
    (text,) = layers(gather([trial]))["front"]["hover"]
    assert "trial 0 · m1" in text
    assert "&lt;img src=x&gt; 1" in text
    assert "at epoch 1" in text
    assert "5.00 (4.90 to 5.10)" in text


def test_the_front_figure_draws_the_layers(data: StudyData):
    figure = front.front(data)
    own = named(figure, "front")
    assert list(own.x) == [20.0, 100.0, 300.0]
    assert list(own.y) == [97.8, 96.9, 94.1]
    assert list(own.error_x.array) == pytest.approx([0.4, 2.0, 6.0])
    assert list(own.error_x.arrayminus) == pytest.approx([0.4, 2.0, 6.0])
    assert named(figure, "slides, published").marker.symbol == "diamond-open"
    assert named(figure, "slides, run").marker.symbol == "diamond"
    assert list(named(figure, "teacher").x) == [1.0]
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.title.text == "inference ratio: teacher time / student time"
    assert figure.layout.yaxis.title.text == "test accuracy, %"
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].x1) == front.TARGET


def test_every_anchor_is_labelled_and_no_two_labels_of_a_column_overlap(data: StudyData):
    figure = front.front(data)
    texts = [trace for trace in figure.data if (trace.name or "").endswith("labels")]
    assert [list(trace.text) for trace in texts] == [[f"m{i}" for i in range(1, 10)], ["m1", "m2", "m9"]]
    low, high = figure.layout.yaxis.range
    places = sorted(y for x, y in zip(texts[0].x, texts[0].y, strict=True) if 100 < x < 250)
    gaps = [(b - a) / (high - low) * front.PLOT_PIXELS for a, b in pairwise(places)]
    assert len(gaps) == 6
    assert min(gaps) >= 13.9


def test_the_switch_swaps_every_trace(data: StudyData):
    figure = front.front(data)
    (menu,) = figure.layout.updatemenus
    assert [button.label for button in menu.buttons] == ["test accuracy", "validation accuracy"]
    here, there = (button.args[0]["y"] for button in menu.buttons)
    assert len(here) == len(there) == len(figure.data)
    index = list(figure.data).index(named(figure, "front"))
    assert here[index] == [97.8, 96.9, 94.1]
    assert there[index] == [98.0, 97.0, 94.0]
    published = list(figure.data).index(named(figure, "slides, published"))
    assert there[published] == [None] * 9
    assert menu.buttons[1].args[1]["yaxis.title.text"] == "validation accuracy, %"


def test_without_test_accuracies_validation_is_drawn_and_nothing_to_switch(gather):
    figure = front.front(gather([create_trial(values=[0.9, 5.0])], bare=True))
    assert figure.layout.yaxis.title.text == "validation accuracy, %"
    assert list(named(figure, "front").y) == [90.0]
    assert not figure.layout.updatemenus


def test_near_ratios_get_a_linear_axis_and_operations_their_name(make_trial, gather):
    found = gather([make_trial([0.9], 2.0), make_trial([0.8], 5.0)], {"definition": {"cost": "flops"}}, bare=True)
    axis = front.front(found).layout.xaxis
    assert axis.type is None
    assert axis.title.text == "inference ratio: teacher operations / student operations"


def test_one_trial_at_chance_level_does_not_flatten_the_view(make_trial, gather):
    good = [make_trial([0.97], 10.0), make_trial([0.96], 20.0)]
    found = gather([*good, make_trial([0.1], 9.0)])
    assert front.front(found).layout.yaxis.range[0] > 90
    assert front.below(found) == 1


def test_curves_are_grouped_by_what_became_of_the_trial(data: StudyData):
    groups = curve_groups(data)
    assert {name: [curve["trial"] for curve in group] for name, group in groups.items()} == {
        "front": [4, 3, 0], "pruned": [5], "other": [1, 2]
    }  # fmt: skip
    assert groups["front"][0]["epochs"] == [1, 2]
    assert groups["front"][0]["percents"] == pytest.approx([90.0, 98.0])


def test_the_learning_curves_keep_lines_apart_and_mark_the_stop(data: StudyData):
    figure = curves.learning_curves(data)
    assert list(named(figure, "dominated").x) == [1, 2, 3, None, 1, None]
    assert named(figure, "pruned").line.dash == "dot"
    assert (list(named(figure, "stopped").x), list(named(figure, "stopped").y)) == ([1], [91.0])
    assert list(named(figure, "trial 0 (m1)").y) == [93.0, 94.0]


def test_the_hypervolume_is_drawn_trial_by_trial(data: StudyData):
    (trace,) = curves.hypervolume(data).data
    assert list(trace.x) == [1, 2, 3, 4, 5, 6]
    assert list(trace.y) == pytest.approx([*data.history["hypervolume"]], abs=1e-5)


@pytest.mark.parametrize("draw", [front.front, curves.learning_curves, curves.hypervolume])
@pytest.mark.parametrize("bare", [True, False])
def test_an_empty_study_draws_and_the_json_is_strict(gather, draw, bare):
    figure = draw(gather([], bare=bare))
    json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    drawn = {t.name.split(",")[0] for t in figure.data if t.x is not None and len(t.x) and t.name}  # others are labels
    expected = set() if bare or draw is not front.front else {"slides", "teacher"}
    assert drawn == expected
    ranges = [axis.range for axis in (figure.layout.xaxis, figure.layout.yaxis) if axis.range is not None]
    assert all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in ranges)


def test_figures_stay_small(data: StudyData):
    assert len(front.front(data).to_json()) < 20_000
    assert "bdata" not in front.front(data).to_json()


def test_a_ratio_of_zero_is_left_out_of_a_log_axis(make_trial, gather):
    found = gather([make_trial([0.9], 50.0), make_trial([0.95], 0.0)])
    figure = front.front(found)
    assert list(named(figure, "front").x) == [50.0]
    assert all(math.isfinite(end) for end in figure.layout.xaxis.range)


heights = st.lists(st.floats(-100, 100), max_size=12)


@given(heights, st.floats(0.1, 5))
def test_spread_keeps_the_order_and_the_gap(values: list[float], gap: float):
    places = spread(values, gap)
    order = sorted(range(len(values)), key=lambda i: values[i])
    steps = [places[b] - places[a] for a, b in pairwise(order)]
    assert all(step >= gap - 1e-6 for step in steps)


def test_spread_leaves_what_is_far_apart_and_centres_what_is_not():
    assert spread([5.0, 1.0, 9.0], 1.0) == [5.0, 1.0, 9.0]
    assert spread([2.0, 2.0, 2.0], 1.0) == [1.0, 2.0, 3.0]
    assert spread([0.0, 0.0, 10.0], 2.0) == [-1.0, 1.0, 10.0]


def test_a_crowd_gets_one_column_and_a_loner_none():
    places = beside([(1.0, 5.0), (1.02, 5.1), (1.01, 4.9), (3.0, 7.0)], near=0.05, gap=1.0, reach=0.3)
    assert [place.x for place in places[:3]] == pytest.approx([1.32] * 3)
    assert [place.y for place in places[:3]] == pytest.approx([5.0, 6.0, 4.0])
    assert [place.crowded for place in places] == [True, True, True, False]
    assert places[3].y == 7.0


def test_negative_reach_puts_the_column_to_the_left():
    places = beside([(1.0, 5.0), (1.02, 5.1)], near=0.05, gap=1.0, reach=-0.3)
    assert [place.x for place in places] == pytest.approx([0.7, 0.7])
