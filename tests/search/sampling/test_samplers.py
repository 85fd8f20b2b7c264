from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from kdsearch.search.sampling import samplers


def draws(name: str, seed: int | None, *parts: int, path: Path) -> list[dict]:
    """Parameters of a study run in parts, each in a process that starts anew as far as the sampler can tell."""
    for trials in parts:
        study = optuna.create_study(
            storage=f"sqlite:///{path}", study_name="x", directions=["maximize"] * 2, load_if_exists=True,
            sampler=samplers.make(name, seed),
        )  # fmt: skip
        study.optimize(lambda t: (t.suggest_float("x", 0, 1), -t.suggest_int("n", 1, 9) - t.params["x"]), trials)
    return [trial.params for trial in study.trials]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trials"), [("tpe", 14), ("nsga2", 14), ("random", 6), ("gp", 13)])
def test_a_seeded_sampler_draws_the_same_resumed_or_not(name, trials, tmp_path):
    once = draws(name, 7, trials, path=tmp_path / "a.db")
    assert once == draws(name, 7, trials - 4, 1, 3, path=tmp_path / "b.db")
    assert once[0] != draws(name, 8, 1, path=tmp_path / "c.db")[0]
    assert len({params["x"] for params in once}) == trials  # no draw is repeated


def test_without_a_seed_draws_differ(tmp_path):
    assert draws("random", None, 2, path=tmp_path / "a.db") != draws("random", None, 2, path=tmp_path / "b.db")


def test_a_trials_draws_follow_its_number(tmp_path):
    once = draws("random", 7, 3, path=tmp_path / "a.db")
    assert once == draws("random", 7, 1, 1, 1, path=tmp_path / "b.db")
    assert once != draws("random", 8, 3, path=tmp_path / "c.db")
    assert len({params["x"] for params in once}) == 3


def test_every_sampler_of_the_command_line_can_be_made():
    assert sorted(samplers.SAMPLERS) == ["gp", "nsga2", "random", "tpe"]
    assert all(isinstance(samplers.make(name, None), optuna.samplers.BaseSampler) for name in samplers.SAMPLERS)
