from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.experiments.claims.findings import Effect, Finding, as_json, corrected, effect
from kdsearch.stats import mean_interval


def of(*values: float, margin: float = 0.0, decides: bool = True) -> Effect:
    return Effect("a - b", values, margin, decides)


CONFIRMED, REFUTED, UNDECIDED = of(1.0, 1.1, 0.9, 1.0, 1.05), of(-1.0, -1.1, -0.9), of(1.0, -1.0, 0.5)


def test_an_effect_is_paired_by_seed_in_points():
    found = effect("x", [0.5, 0.75, 1.0], [0.25, 0.5, 0.5], margin=1.0)
    assert found.values == [25.0, 25.0, 50.0]
    expected = mean_interval([25.0, 25.0, 50.0])
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="must be paired"):
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


def test_holms_correction_is_over_the_nine_whichever_were_run():
    sure, weak = of(1.0, 1.01, 0.99, 1.0, 1.005), of(0.5, 0.9, 1.2, 0.2, 0.6)
    assert (finding(sure).verdict, finding(weak).verdict) == ("confirmed", "confirmed")
    first, second, lemma = corrected([finding(weak), finding(sure), finding(decided="confirmed")])
    assert second.adjusted == pytest.approx(9 * finding(sure).p)
    assert first.adjusted == pytest.approx(8 * finding(weak).p)
    assert (first.verdict, second.verdict, lemma.verdict) == ("undecided", "confirmed", "confirmed")
    assert lemma.adjusted is None


def test_equality_is_shown_only_within_the_margin():
    assert of(0.1, 0.0, -0.1, 0.05, 0.0, margin=-0.5).equivalent
    assert not of(0.7, 0.72, 0.71, 0.69, margin=-0.5).equivalent  # better, so not worse, yet not equal
    assert not of(1.0, -1.0, 0.5, -0.4, margin=-0.5).equivalent
