from __future__ import annotations

import builtins
import subprocess
import sys

import pytest

from kdsearch import pareto
from kdsearch.cli.options import lazy_imports

CODE = """
import sys
from kdsearch.cli.options import lazy_imports
with lazy_imports():
    from kdsearch.search import retrain as again
print("kdsearch.search.retrain" in sys.modules)
print(again.retrain.__module__, "kdsearch.search.retrain" in sys.modules)
"""


@pytest.mark.slow
def test_a_module_is_imported_at_the_first_look_at_a_name():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "kdsearch.search.retrain", "True"]


def test_it_is_the_module_for_those_who_read_and_change_it(monkeypatch: pytest.MonkeyPatch):
    before = builtins.__import__
    with lazy_imports():
        from kdsearch import pareto as lazily
    assert builtins.__import__ is before
    assert lazily.front is pareto.front
    monkeypatch.setattr(pareto, "front", len)
    assert lazily.front is len
    lazily.front = min
    assert pareto.front is min
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lazily.no_such_name
