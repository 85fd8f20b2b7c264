from __future__ import annotations

import pytest

from kdsearch import errors
from kdsearch.errors import KdsearchError


def test_an_error_is_one_line_of_rule_value_and_remedy():
    error = KdsearchError("a number must be\neven", got=3, remedy="give\n  4")
    assert str(error) == "a number must be even (got 3); give 4"
    assert (error.rule, error.got, error.remedy) == ("a number must be\neven", 3, "give\n  4")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [({}, "rule"), ({"got": 0}, "rule (got 0)"), ({"remedy": "mend"}, "rule; mend"), ({"got": ""}, "rule (got )")],
)
def test_what_is_not_given_is_left_out(arguments, line):
    assert str(KdsearchError("rule", **arguments)) == line


def test_every_error_of_the_module_is_a_kdsearch_error():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 5
    assert all(issubclass(kind, KdsearchError) for kind in kinds)
