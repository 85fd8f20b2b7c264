from __future__ import annotations

import pytest
from helpers.decision import decision

from kdsearch.pruning.pruner import ParetoPruner


def test_decisions_are_timed_at_all_steps(monkeypatch):
    steps, states = [], []

    def verdict(self, study, trial):
        steps.append(max(map(int, trial.user_attrs["curve"])))
        states.append([other.state.name for other in study.trials])
        return real(self, study, trial)

    real = ParetoPruner.verdict
    monkeypatch.setattr(ParetoPruner, "verdict", verdict)
    found = decision(trials=20, epochs=5, decisions=8)
    assert steps == [1, 2, 3, 4, 1, 2, 3, 4, 1]
    assert all(names.count("COMPLETE") == 20 and names.count("RUNNING") == 1 for names in states)
    assert 0 < found["median_ms"] <= found["worst_ms"]
    assert found["cold_ms"] > 0
    assert (found["trials"], found["epochs"], found["decisions"]) == (20, 5, 8)


@pytest.mark.slow
def test_a_decision_in_a_long_study_takes_five_milliseconds():
    # the least of three medians of CPU time: other processes on the machine make it longer, nothing makes it shorter
    assert min(decision(trials=1000, epochs=30)["median_ms"] for _ in range(3)) < 5
