from __future__ import annotations

import cProfile
import pstats
import statistics

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


def calls(trials: int) -> float:
    """Return the Python calls of one decision in a study of that many trials, which no other process changes."""
    counts = []

    def verdict(self, study, trial):
        with cProfile.Profile() as profile:
            found = real(self, study, trial)
        counts.append(pstats.Stats(profile).total_calls)
        return found

    real = ParetoPruner.verdict
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ParetoPruner, "verdict", verdict)
        decision(trials=trials, epochs=30, decisions=20)
    return statistics.median(counts[1:])  # the first reads the whole history


@pytest.mark.slow
def test_a_decision_in_a_long_study_reads_no_trial_again():
    # it took 1.7 to 2.3 ms of CPU at 1,000 trials when it was quiet; what a busy machine cannot change is counted here
    few, many = calls(100), calls(1000)
    assert many < 2 * few  # ten times the trials
    assert many < 5000
