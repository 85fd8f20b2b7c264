from __future__ import annotations

import pytest

import kdsearch
from kdsearch import cli, errors
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


def test_windows_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    errors.check_platform()
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    line = "kdsearch: error: kdsearch runs on Linux and macOS (got Windows); run it inside WSL"
    assert capsys.readouterr().err.startswith(line)
    with pytest.raises(KdsearchError, match="inside WSL"):
        _ = kdsearch.optimize
