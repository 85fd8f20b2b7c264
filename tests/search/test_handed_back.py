"""A trial that was handed back goes on from its checkpoint when it is run again on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from kdsearch import optimize
from kdsearch.distil import checkpoint
from kdsearch.records import Attr, Config, EpochRecord, Progress
from kdsearch.search.budget import epochs_run, epochs_spent
from kdsearch.search.trial import handed_back_seeds
from kdsearch.storage import load_study, open_storage

EPOCHS = 4
OPTIONS = {
    "train_size": 200, "max_epochs": EPOCHS, "device": "cpu", "cost": "flops", "sampler": "random", "candidates": 1,
    "pruner": "none", "seed": 0, "trials": 1,
}  # fmt: skip
SCRIPT = f"""
import os, signal, sys
from kdsearch import optimize
from kdsearch.distil import checkpoint
from kdsearch.records import Progress

checkpoint.EVERY = checkpoint.SLOW_EPOCH = 0.0

class Killing(Progress):
    def trial_epoch(self, number, record, epochs):
        if record.epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)

optimize(study=sys.argv[1], storage=sys.argv[2], progress=Killing(), **{OPTIONS!r})
"""


class Stopping(Progress):
    """Interrupts a trial after an epoch of it; remembers the epochs that were trained."""

    def __init__(self, after: int = 99) -> None:
        self.after = after
        self.epochs: list[tuple[int, int]] = []
        self.went_on: list[tuple[str, int, int]] = []
        self.warnings: list[str] = []

    def trial_epoch(self, number: int, record: EpochRecord, epochs: int) -> None:
        self.epochs.append((number, record.epoch))
        if record.epoch == self.after:
            raise KeyboardInterrupt

    def resumed(self, what: str, done: int, epochs: int) -> None:
        self.went_on.append((what, done, epochs))

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def slow_epochs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Checkpoints of every epoch, in a folder of their own."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "SLOW_EPOCH", 0.0)
    monkeypatch.setattr(checkpoint, "folder", lambda: tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


@pytest.fixture
def one(study_file: Path) -> Path:
    """A study of one anchor, five epochs of an averaged training; the teacher is that of all tests."""
    text = study_file.read_text(encoding="utf-8").partition("m2 = ")[0]
    text = text.replace("epochs = 3, batch_size = 32 }", f"epochs = {EPOCHS}, batch_size = 32 }}")
    text = text.replace("[student.recipe]", "[student.recipe]\naveraging = 2.0").replace("epochs = 25", "epochs = 2")
    study_file.write_text(text, encoding="utf-8")
    return study_file


def run(study: Path, url: str, progress: Progress) -> optuna.Study:
    return optimize(study=study, storage=url, progress=progress, **OPTIONS)  # type: ignore[arg-type]


def outcome(trial: FrozenTrial) -> dict[str, object]:
    """All of a trial that no clock is part of."""
    names = (Attr.CONFIG, Attr.SEED, Attr.CURVE, Attr.LOSSES, Attr.ACCURACY, Attr.BEST_EPOCH, Attr.TEST_ACCURACY)
    weights = trial.user_attrs[Attr.WEIGHTS]["digest"]
    return {name: trial.user_attrs[name] for name in names} | {"values": trial.values, "weights": weights}


def test_it_ends_as_if_it_had_not_been_interrupted(one: Path, tmp_path: Path, slow_epochs: Path):
    whole = run(one, f"journal:{tmp_path / 'whole.log'}", Progress()).trials[0]
    url = f"journal:{tmp_path / 'cut.log'}"
    for after in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            run(one, url, Stopping(after))
        assert len(list(slow_epochs.iterdir())) == 1
    last = Stopping()
    study = run(one, url, last)
    first, second, third = study.trials
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    assert outcome(third) == outcome(whole)
    assert third.user_attrs[Attr.TRAIN_SECONDS] > 0
    assert last.went_on == [("trial 2", 2, EPOCHS)]
    assert last.epochs == [(2, 3), (2, 4)]
    assert [trial.user_attrs.get(Attr.RESUMED) for trial in (first, second, third)] == [None, 1, 2]
    assert [epochs_run(trial) for trial in (first, second, third)] == [2, 3, 4]
    assert epochs_spent(study.trials) == 2 + (3 - 1) + (4 - 2)  # those that were trained, each once
    assert list(slow_epochs.iterdir()) == []
    assert last.warnings == []


def test_without_a_checkpoint_it_is_trained_anew_with_its_own_seed(one: Path, url: str, slow_epochs: Path):
    with pytest.raises(KeyboardInterrupt):
        run(one, url, Stopping(2))
    for path in slow_epochs.iterdir():
        path.unlink()
    again = Stopping()
    study = run(one, url, again)
    seeds = [trial.user_attrs[Attr.SEED] for trial in study.trials]
    assert seeds[0] != seeds[1]
    assert again.epochs == [(1, epoch) for epoch in range(1, EPOCHS + 1)]
    assert Attr.RESUMED not in study.trials[1].user_attrs
    assert epochs_spent(study.trials) == 2 + EPOCHS


def test_a_broken_checkpoint_costs_a_line_and_the_epochs(one: Path, url: str, slow_epochs: Path):
    with pytest.raises(KeyboardInterrupt):
        run(one, url, Stopping(2))
    (path,) = slow_epochs.iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    again = Stopping()
    study = run(one, url, again)
    assert len(again.warnings) == 1
    assert "starts over" in again.warnings[0]
    assert again.went_on == []
    assert study.trials[1].state == TrialState.COMPLETE
    assert list(slow_epochs.iterdir()) == []


def test_short_epochs_leave_no_checkpoint(one: Path, url: str, slow_epochs: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SLOW_EPOCH", 10.0)
    with pytest.raises(KeyboardInterrupt):
        run(one, url, Stopping(2))
    assert not slow_epochs.exists()


def test_the_seeds_of_all_who_ran_it_are_known_the_latest_first():
    study = optuna.create_study(directions=["maximize"] * 2)
    configs: list[Config] = [{Attr.SEED: 5}, {Attr.SEED: 6, Attr.RETRY_OF: 0}, {Attr.RETRY_OF: 1}, {Attr.RETRY_OF: 2}]
    for attrs in [*configs, {Attr.RETRY_OF: 99}, {Attr.RETRY_OF: 5}]:
        study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attrs))
    study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, user_attrs={Attr.RETRY_OF: 3}))
    found = [list(handed_back_seeds(optuna.Trial(study, number))) for number in (0, 1, 3, 4, 5, 6)]
    assert found == [[], [5], [6, 5], [], [], [6, 5]]


@pytest.mark.slow
def test_a_killed_process_loses_an_epoch_at_most(one: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path / "cache"))
    url = f"sqlite:///{tmp_path}/cut.db"
    words = [sys.executable, "-c", SCRIPT, str(one), url]
    killed = subprocess.run(words, env={**os.environ}, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (trial,) = load_study(open_storage(url), "digits").trials
    assert (trial.state, epochs_run(trial)) == (TrialState.RUNNING, 3)
    progress = Stopping()
    study = run(one, url, progress)
    assert progress.went_on == [("trial 1", 2, EPOCHS)]
    whole = run(one, f"journal:{tmp_path / 'whole.log'}", Progress()).trials[0]
    assert outcome(study.trials[1]) == outcome(whole)
    assert not list((tmp_path / "cache" / "checkpoints").iterdir())
