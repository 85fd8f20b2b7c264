from __future__ import annotations

import json

from kdsearch.reporting.pages import compare, document

HOSTILE = "<script>alert(1)</script>"


def test_fronts_lie_over_one_another_and_the_larger_hypervolume_is_named(make_trial, make_study, typical, gather):
    small = make_study([make_trial([0.9], 10.0), make_trial([0.8], 5.0)], name="small")
    studies = [gather(study) for study in (typical, small)]
    figure = compare.fronts(studies)
    assert [(trace.name, len(trace.x)) for trace in figure.data] == [("mnist", 3), ("small", 1)]
    assert compare.verdict(studies).startswith("The front of mnist covers most")
    found = json.loads(json.dumps(compare.compared(studies), allow_nan=False))
    assert [each["study"] for each in found["studies"]] == ["mnist", "small"]
    assert "small" in compare.text(studies)


def test_equal_fronts_are_not_ranked(typical, gather):
    studies = [gather(typical)] * 2
    assert compare.verdict(studies).startswith("No front covers more than all others")


def test_studies_of_other_data_do_not_compare(make_trial, make_study, typical, gather):
    other = make_study([make_trial([0.9], 10.0)], name=HOSTILE)
    other.set_user_attr("definition", {"data": {"fingerprint": "else"}, "cost": "latency"})
    studies = [gather(study) for study in (typical, other)]
    assert compare.unlike(studies) == ["The studies differ in their data."]
    assert "do not compare" in compare.verdict(studies)
    assert HOSTILE not in document.html(compare.page(studies), "cdn")
