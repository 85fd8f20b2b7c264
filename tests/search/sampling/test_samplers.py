from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import torch

from kdsearch import spec
from kdsearch.search import space
from kdsearch.search.sampling import samplers
from kdsearch.search.sampling.samplers import LargeBatches, least_batch
from kdsearch.search.space import trial_parameters
from kdsearch.search.study import make_sampler
from kdsearch.search.workshop import Workshop
from kdsearch.spec import Range

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def draws(name: str, seed: int | None, *parts: int, path: Path) -> list[dict]:
    """Parameters of a study run in parts, each in a process that starts over as far as the sampler can tell."""
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


def of_batches(sizes: object) -> spec.StudySpec:
    loaded = spec.load(spec.shipped("digits"))
    return loaded.model_copy(update={"space": loaded.space | {"batch_size": sizes}})


def test_small_batches_are_left_out_on_a_gpu_alone_and_where_there_are_larger_ones():
    assert least_batch(of_batches([16, 32, 64, 128]), CUDA) == 64
    assert least_batch(of_batches(Range(low=16, high=512)), CUDA) == 64
    assert least_batch(of_batches([16, 32, 64, 128]), CPU) is None
    assert least_batch(of_batches([16, 32]), CUDA) is None  # what the user wants
    assert least_batch(of_batches([64, 128]), CUDA) is None
    assert least_batch(of_batches(16), CUDA) is None


@pytest.mark.parametrize("name", ["tpe", "random", "nsga2"])
@pytest.mark.parametrize("stepped", [False, True])
def test_a_gpus_sampler_draws_no_small_batch_but_an_anchor_keeps_its_own(name: str, stepped: bool):
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 1)
        if stepped:
            return x, trial.suggest_int("batch_size", 10, 210, step=50)
        return x, trial.suggest_categorical("batch_size", [16, 32, 64, 128])

    def drawn(seed: int) -> list[int]:
        sampler = LargeBatches(samplers.make(name, seed), 64, seed)
        study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler)
        study.enqueue_trial({"batch_size": 10 if stepped else 16})
        study.optimize(objective, 25)
        return [trial.params["batch_size"] for trial in study.trials]

    first, *others = drawn(3)
    assert first == (10 if stepped else 16)
    assert set(others) == ({110, 160, 210} if stepped else {64, 128})
    assert drawn(3) == [first, *others]


@pytest.mark.parametrize("candidates", [1, 24])
def test_a_study_on_a_gpu_samples_large_batches(workshop: Workshop, candidates: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Workshop, "device", CUDA)
    sampler = make_sampler("random", workshop, candidates=candidates, seed=0)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=sampler, pruner=optuna.pruners.NopPruner())
    anchor = next(iter(workshop.spec.anchors.values())).config | {"batch_size": 16}
    study.enqueue_trial(trial_parameters(anchor, workshop.spec.space))
    study.optimize(lambda trial: (0.5, 1.0 + space.draw(trial, workshop.spec)["width"]), 10)
    assert study.trials[0].params["batch_size"] == 16
    assert all(trial.params["batch_size"] >= 64 for trial in study.trials[1:])
    monkeypatch.setattr(Workshop, "device", CPU)
    on_a_cpu = make_sampler("random", workshop, candidates=candidates, seed=0)
    assert not isinstance(on_a_cpu, LargeBatches)
