from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.experiments.claims.findings import Effect, Finding, as_json, effect
from kdsearch.stats import mean_interval


def of(*values: float, margin: float = 0.0, decides: bool = True) -> Effect:
    return Effect("a - b", values, margin, decides)


CONFIRMED, REFUTED, UNDECIDED = of(1.0, 1.1, 0.9, 1.0, 1.05), of(-1.0, -1.1, -0.9), of(1.0, -1.0, 0.5)


def test_an_effect_is_paired_by_seed_in_points():
    found = effect("x", [0.5, 0.75, 1.0], [0.25, 0.5, 0.5], margin=1.0)
    assert found.values == [25.0, 25.0, 50.0]
    assert found.interval == mean_interval([25.0, 25.0, 50.0])
    with pytest.raises(ValueError, match="shorter"):
        effect("x", [0.5, 0.75], [0.25], margin=1.0)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(-3, 3))
def test_a_verdict_needs_the_whole_interval_on_one_side_of_the_margin(values, margin):
    found = of(*values, margin=margin)
    expected = "undecided"
    if found.interval.low > margin:
        expected = "confirmed"
    elif found.interval.high < margin:
        expected = "refuted"
    assert found.verdict == expected
    mirrored = of(*(-value for value in values), margin=-margin)
    assert mirrored.verdict == {"confirmed": "refuted", "refuted": "confirmed"}.get(expected, expected)


def finding(*effects: Effect, decided=None) -> Finding:
    return Finding(1, "claim", "digits", "experiment", effects, decided=decided)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (finding(CONFIRMED), "confirmed"),
        (finding(CONFIRMED, REFUTED), "refuted"),
        (finding(CONFIRMED, UNDECIDED), "undecided"),
        (finding(UNDECIDED, REFUTED), "refuted"),
        (finding(CONFIRMED, of(-1.0, -1.1, decides=False)), "confirmed"),
        (finding(CONFIRMED, decided="undecided"), "undecided"),
        (finding(CONFIRMED, decided="refuted"), "refuted"),
        (finding(decided="confirmed"), "confirmed"),
        (finding(decided="not measured"), "not measured"),
        (finding(), "not measured"),
    ],
)
def test_a_claim_holds_if_all_that_decides_holds(found, verdict):
    assert found.verdict == verdict


def test_the_json_holds_effects_with_their_margins():
    (found,) = json.loads(json.dumps(as_json([finding(CONFIRMED)]), allow_nan=False))
    assert (found["claim"], found["verdict"]) == (1, "confirmed")
    assert found["effects"][0]["n"] == 5
    assert found["effects"][0]["low"] < found["effects"][0]["mean"] < found["effects"][0]["high"]
