from __future__ import annotations

import json
import math
import statistics
from typing import Any

import pandas as pd
import pytest
from helpers.elsewhere import confirmed
from hypothesis import given
from hypothesis import strategies as st

from kdsearch import pareto
from kdsearch.records import StudyAttr
from kdsearch.reporting import confirmation
from kdsearch.stats import mean_interval


def stored(trial: int, tests: list[float], ratios: list[float], epochs: int = 3) -> dict[str, Any]:
    return {f"{StudyAttr.CONFIRMED}{trial}": confirmed(trial, tests, ratios, epochs=epochs)}


def front(**points: tuple[float, float]) -> pd.DataFrame:
    rows = [(int(name[1:]), *point, True) for name, point in points.items()]
    return pd.DataFrame(rows, columns=["trial", "test_accuracy", "ratio", "on_front"])


def test_a_row_is_the_mean_over_repeats_with_students_interval() -> None:
    tests, ratios = [0.90, 0.92, 0.94], [10.0, 11.0, 12.0]
    attrs = {"teacher": {}, **stored(12, tests, ratios, 4), **stored(3, tests[:1], ratios[:1])}
    frame = confirmation.confirmations(attrs)
    assert list(frame.columns) == list(confirmation.COLUMNS)
    assert list(frame["trial"]) == [3, 12]
    row = frame.iloc[1]
    expected = mean_interval(tests)
    assert (row["repeats"], row["epochs"]) == (3, 4)
    assert (row["test_accuracy"], row["test_low"], row["test_high"]) == (expected.mean, expected.low, expected.high)
    assert row["ratio"] == pytest.approx(statistics.geometric_mean(ratios))
    deviation = statistics.stdev(map(math.log, ratios))  # t of 2 degrees: nobody else was timed more than once
    assert math.log(row["ratio_high"] / row["ratio"]) == pytest.approx(4.3027 * deviation / math.sqrt(3), rel=1e-4)


def test_one_repeat_has_no_interval_and_is_never_clear() -> None:
    attrs = {**stored(1, [0.99], [50.0]), **stored(2, [0.10], [5.0])}
    frame = confirmation.confirmations(attrs)
    assert frame[["test_low", "test_high", "ratio_low", "ratio_high"]].isna().all(axis=None)
    found = confirmation.order(front(t1=(0.9, 5.0), t2=(0.8, 6.0)), frame)
    assert [(p.trial, p.by, p.clear) for p in found.behind] == [(2, 1, False)]
    assert "1 seed" in confirmation.sentence(found)
    assert "no intervals" in confirmation.sentence(found)


def test_nothing_confirmed_is_an_empty_frame_and_says_so() -> None:
    frame = confirmation.confirmations({"definition": {}, "confirmed": 3})
    assert frame.empty
    assert list(frame.columns) == list(confirmation.COLUMNS)
    found = confirmation.order(front(t1=(0.9, 5.0)), frame)
    assert (found.confirmed, found.behind, found.repeats) == ((), (), (0, 0))
    assert "never confirmed" in confirmation.sentence(found)


RUN = stored(1, [0.9], [5.0])["confirmed:1"]["runs"][0]


@pytest.mark.parametrize(
    "value",
    [
        None, 3, "runs", [], {}, {"trial": 1, "epochs": 3}, {"trial": 1, "epochs": 3, "runs": {}},
        {"trial": 2, "epochs": 3, "runs": [RUN]}, {"trial": 1, "epochs": 0, "runs": [RUN]},
        {"trial": 1, "epochs": "3", "runs": [RUN]}, {"trial": 1, "epochs": math.nan, "runs": [RUN]},
        *({"trial": 1, "epochs": 3, "runs": [run]} for run in (
            None, 3, [], {}, RUN | {"seed": 0.5}, RUN | {"seed": True}, RUN | {"test_accuracy": 1.5},
            RUN | {"test_accuracy": math.nan}, RUN | {"ratio": 0}, RUN | {"ratio": math.inf}, RUN | {"ratio": "5"},
            RUN | {"ratio_low": -1.0}, RUN | {"ratio_low": 9.0}, RUN | {"seconds": None},
        )),
    ],
)  # fmt: skip
def test_what_is_malformed_falls_out(value: object) -> None:
    sound = stored(7, [0.9, 0.91], [5.0, 5.1])
    assert list(confirmation.confirmations({"confirmed:1": value, **sound})["trial"]) == [7]


@pytest.mark.parametrize("key", ["confirmed:", "confirmed:x", "confirmed:-1", "confirmed:²", "confirmed:" + "9" * 5000])
def test_a_name_without_a_number_falls_out(key: str) -> None:
    assert confirmation.confirmations({key: stored(1, [0.9], [5.0])["confirmed:1"]}).empty


def test_a_malformed_run_falls_out_and_a_seed_counts_once() -> None:
    attrs = stored(1, [0.9, 0.8], [5.0, 6.0])
    attrs["confirmed:1"]["runs"] += [{**RUN, "test_accuracy": 0.1}, {"seed": 9}]
    row = confirmation.confirmations(attrs).iloc[0]
    assert row["repeats"] == 2
    assert row["test_accuracy"] == pytest.approx(0.85)


SEARCH = front(t1=(0.97, 10.0), t2=(0.96, 20.0), t3=(0.95, 30.0))


def test_a_member_that_is_overtaken_by_far_is_clear_and_by_little_is_noise() -> None:
    tests = {1: [0.970, 0.971, 0.969], 2: [0.940, 0.941, 0.942], 3: [0.950, 0.951, 0.952]}
    ratios = {1: [10.0, 10.1, 9.9], 2: [20.0, 20.1, 19.9], 3: [30.0, 30.1, 29.9]}
    attrs = {key: value for n in tests for key, value in stored(n, tests[n], ratios[n]).items()}
    found = confirmation.order(SEARCH, confirmation.confirmations(attrs))
    assert [(p.trial, p.by, p.clear, p.before) for p in found.behind] == [(2, 3, True, False)]
    assert found.staying == [1, 3]
    assert confirmation.sentence(found) == (
        "Confirmed with 3 seeds: 2 of 3 stay on the front; trial 2 falls behind trial 3 (clear)."
    )
    attrs |= stored(2, [0.930, 0.951, 0.965], ratios[2])
    (pair,) = confirmation.order(SEARCH, confirmation.confirmations(attrs)).behind
    assert (pair.trial, pair.by, pair.clear) == (2, 3, False)


def test_what_is_ahead_in_accuracy_alone_is_not_clear_where_the_ratios_are_noise() -> None:
    attrs = {**stored(1, [0.90, 0.901, 0.902], [10.0, 12.0, 14.0]), **stored(2, [0.95, 0.951, 0.952], [11, 12, 14])}
    (pair,) = confirmation.order(SEARCH, confirmation.confirmations(attrs)).behind
    assert (pair.trial, pair.by, pair.clear) == (1, 2, False)


def test_counted_operations_have_no_noise_so_accuracy_decides_a_tie() -> None:
    attrs = {**stored(1, [0.90, 0.901, 0.902], [10.0] * 3), **stored(2, [0.95, 0.951, 0.952], [10.0] * 3)}
    (pair,) = confirmation.order(SEARCH, confirmation.confirmations(attrs)).behind
    assert (pair.trial, pair.by, pair.clear) == (1, 2, True)


def test_an_accuracy_without_spread_is_chance_and_not_clear() -> None:
    attrs = {**stored(1, [0.90, 0.90], [10.0] * 2), **stored(2, [0.95, 0.95], [10.0] * 2)}
    (pair,) = confirmation.order(SEARCH, confirmation.confirmations(attrs)).behind
    assert not pair.clear


def test_the_sentence_tells_of_members_left_out_and_of_what_the_search_said_itself() -> None:
    search = front(t1=(0.95, 10.0), t2=(0.96, 20.0), t3=(0.94, 30.0))  # chosen by validation: 1 is behind in test
    attrs = {**stored(1, [0.950, 0.951], [10.0, 10.1]), **stored(2, [0.96, 0.97, 0.98], [20.0, 20.2, 20.1])}
    found = confirmation.order(search, confirmation.confirmations(attrs))
    text = confirmation.sentence(found)
    assert text.startswith("Confirmed with 2 to 3 seeds: 1 of the 2 confirmed of 3 stay on the front; trial 1")
    assert "as by the search's own test accuracy" in text
    alone = confirmation.order(front(t2=(0.96, 20.0)), confirmation.confirmations(attrs))
    assert confirmation.sentence(alone) == "Confirmed with 3 seeds: its one member stays on the front."
    two = confirmation.order(search[1:], confirmation.confirmations(stored(3, [0.9, 0.91], [40.0, 41.0])))
    assert confirmation.sentence(two) == "Confirmed with 2 seeds: all 1 confirmed of 2 stay on the front."


def test_the_result_is_strict_json() -> None:
    attrs = {**stored(1, [0.9], [5.0]), **stored(8, [0.8, 0.82], [6.0, 6.5])}
    rows = front(t1=(0.88, 5.0), t8=(math.nan, 6.0))
    rows.loc[1, "on_front"] = False
    found = json.loads(json.dumps(confirmation.result("s", rows, confirmation.confirmations(attrs)), allow_nan=False))
    assert set(found) == {"study", "trials", "front", "confirmed", "staying", "behind", "sentence"}
    one, eight = found["trials"]
    assert set(one) == {
        *confirmation.COLUMNS, "search_test_accuracy", "search_ratio", "test_difference", "on_front"
    }  # fmt: skip
    assert (one["trial"], one["repeats"], one["test_low"], one["ratio_high"]) == (1, 1, None, None)
    assert one["test_difference"] == pytest.approx(0.02)
    assert (eight["search_test_accuracy"], eight["test_difference"], eight["on_front"]) == (None, None, False)
    assert (found["front"], found["confirmed"]) == (1, [1])


runs = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=5)
studies = st.dictionaries(st.integers(0, 9), runs, min_size=1, max_size=6)


@given(studies)
def test_the_order_is_that_of_the_confirmed_means(found: dict[int, list[tuple[int, int]]]) -> None:
    attrs: dict[str, Any] = {}
    for number, each in found.items():
        attrs |= stored(number, [t / 20 for t, _ in each], [float(r) for _, r in each])
    frame = confirmation.confirmations(attrs)
    search = front(**{f"t{n}": (0.5, 1.0) for n in found})
    order = confirmation.order(search, frame)
    points = {int(row["trial"]): (row["test_accuracy"], row["ratio"]) for row in frame.to_dict("records")}
    numbers = list(points)
    assert order.staying == sorted(numbers[i] for i in pareto.front([points[n] for n in numbers]))
    assert {pair.trial for pair in order.worst} == set(numbers) - set(order.staying)
    assert all(pareto.dominates(points[pair.by], points[pair.trial]) for pair in order.behind)
    pairs = {(pair.trial, pair.by) for pair in order.behind}
    assert not {(by, trial) for trial, by in pairs} & pairs
    clear = {(pair.trial, pair.by) for pair in order.behind if pair.clear}
    assert all(min(len(found[a]), len(found[b])) >= 2 for a, b in clear)
    assert confirmation.sentence(order).endswith(".")


@given(studies, st.integers(2, 50))
def test_clear_is_never_lost_by_a_wider_lead(found: dict[int, list[tuple[int, int]]], lead: int) -> None:
    """Raising the leader's ratio and accuracy by a constant keeps the spread, so what was clear stays clear."""
    one, two = ([*each, *each][:6] for each in ([*found.values()] * 2)[:2])
    worse = stored(1, [t / 100 for t, _ in one], [float(r) for _, r in one])
    for extra in (0, lead):
        better = stored(2, [(t + extra) / 100 for t, _ in two], [float(r + extra) for _, r in two])
        rows = {int(row["trial"]): row for row in confirmation.confirmations({**worse, **better}).to_dict("records")}
        clear = confirmation.is_clear(rows[2], rows[1])
        if extra == 0:
            before = clear
    assert clear or not before
