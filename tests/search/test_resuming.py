"""Trials that the pruner ended and that later ones go on with."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial

import kdsearch
from kdsearch.records import HANDED_BACK, Attr, EpochRecord, Progress
from kdsearch.reporting.collect import collect
from kdsearch.reporting.verdict import effort
from kdsearch.search import resuming
from kdsearch.search.budget import epochs_run, epochs_spent
from kdsearch.search.resuming import PausedTrials
from kdsearch.search.retrain import retrain
from kdsearch.search.weights import folder
from kdsearch.storage import load_study, open_storage

EPOCHS, TRIALS = 6, 24
STATE = {"run": {"weights": torch.arange(4.0)}, "best": {"epoch": 1}, "records": []}


class Counting(Progress):
    """Counts the epochs that are trained; interrupts the first resumed trial after an epoch of it, if it is to."""

    def __init__(self, *, interrupts: bool = False) -> None:
        self.interrupts, self.epochs, self.resumed_trials, self.warnings = interrupts, Counter[int](), [], []

    def trial_epoch(self, number: int, record: EpochRecord, epochs: int) -> None:
        self.epochs[number] += 1
        if self.interrupts and self.resumed_trials:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        if "resumes" in text:
            self.resumed_trials.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pruner ended goes on as soon as anything can be forecast for it."""
    monkeypatch.setattr(resuming, "MARGIN", -1.0)


@pytest.fixture
def small(study_file: Path) -> Path:
    """Digits without anchors, six epochs a trial."""
    text = study_file.read_text(encoding="utf-8").partition("[anchors]")[0]
    study_file.write_text(text.replace("epochs = { low = 1, high = 30 }", f"epochs = {EPOCHS}"), encoding="utf-8")
    return study_file


def run(study: Path, url: str, progress: Progress, **changes: object) -> optuna.Study:
    usual = {"trials": TRIALS, "train_size": 200, "device": "cpu", "cost": "flops", "seed": 0, "sampler": "random"}
    options = {**usual, "candidates": 12, "resume_trials": True, **changes}
    return kdsearch.optimize(study=study, storage=url, progress=progress, **options)  # type: ignore[arg-type]


def resumed(study: optuna.Study) -> list[tuple[FrozenTrial, FrozenTrial]]:
    """The ended trials, each with the one that went on with it."""
    trials = study.trials
    return [(trials[t.user_attrs[Attr.RESUMES]], t) for t in trials if t.user_attrs.get(Attr.RESUMES) is not None]


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_a_resumed_trial_is_the_ended_one_s_training_and_costs_its_new_epochs(small: Path, url: str):
    heard = Counting()
    study = run(small, url, heard)
    pairs = resumed(study)
    assert len(pairs) >= 3
    assert len(heard.resumed_trials) == len(pairs)
    assert len({before.number for before, _ in pairs}) == len(pairs)
    for before, after in pairs:
        assert before.state == TrialState.PRUNED or Attr.STOPPED_AT in before.user_attrs
        same = (Attr.CONFIG, Attr.SEED, Attr.RATIO)
        assert [after.user_attrs[name] for name in same] == [before.user_attrs[name] for name in same]
        assert after.params == before.params
        assert after.user_attrs[Attr.CURVE].items() > before.user_attrs[Attr.CURVE].items()
        assert after.user_attrs[Attr.RESUMED] == epochs_run(before)
        assert heard.epochs[after.number] == epochs_run(after) - epochs_run(before)
    assert epochs_spent(study.trials) == heard.epochs.total()
    values = [tuple(trial.values) for trial in study.best_trials]
    assert len(set(values)) == len(values)  # a common checkpoint stands on the front once
    place = folder(url, study.study_name) / "paused"
    assert not [name for name in os.listdir(place) if "taken" in name]
    assert heard.warnings == []

    whole = max(pairs, key=lambda pair: epochs_run(pair[1]))[1]  # bit by bit what an uninterrupted training gives
    again = retrain(study, whole.number, device="cpu")
    assert again.accuracy == whole.user_attrs[Attr.ACCURACY]
    assert again.test_accuracy == whole.user_attrs[Attr.TEST_ACCURACY]

    data = collect(study, storage_url=url)
    row = data.trials.set_index("number").loc[whole.number]
    assert row["reason"].startswith(f"resumes trial {whole.user_attrs[Attr.RESUMES]}")
    assert f"spent {heard.epochs.total()} epochs" in effort(data)


@pytest.mark.slow
@pytest.mark.usefixtures("eager")
def test_an_interrupted_resumed_trial_is_handed_back_and_resumed_again(small: Path, url: str):
    first, second = Counting(interrupts=True), Counting()
    with pytest.raises(KeyboardInterrupt):
        run(small, url, first)
    study = run(small, url, second)
    handed_back = next(trial for trial in study.trials if trial.state == TrialState.FAIL)
    before = study.trials[handed_back.user_attrs[Attr.RESUMES]]
    retry = next(trial for trial in study.trials if trial.user_attrs.get(Attr.RETRY_OF) == handed_back.number)
    assert retry.user_attrs[Attr.RESUMES] == before.number
    assert retry.user_attrs[Attr.RESUMED] == epochs_run(before)
    assert retry.user_attrs[Attr.SEED] == before.user_attrs[Attr.SEED]
    assert epochs_spent(study.trials) == first.epochs.total() + second.epochs.total()


@pytest.mark.slow
def test_without_the_option_nothing_is_kept(small: Path, url: str):
    study = run(small, url, Counting(), resume_trials=False, trials=8)
    assert not (folder(url, study.study_name) / "paused").exists()
    assert resumed(load_study(open_storage(url), study.study_name)) == []


def test_a_checkpoint_is_claimed_by_one(tmp_path: Path):
    mine, wins = PausedTrials(tmp_path, print), []
    mine.keep(3, STATE)
    others = [threading.Thread(target=lambda: wins.append(PausedTrials(tmp_path, print).take(3))) for _ in range(8)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert sorted(wins) == [False] * 7 + [True]
    assert mine.offered() == []
    assert not mine.take(3)
    found = mine.checkpoint(3).resume(lambda state: state, torch.device("cpu"))
    assert torch.equal(found["run"]["weights"], STATE["run"]["weights"])


def test_what_cannot_be_written_costs_a_line(tmp_path: Path):
    warnings: list[str] = []
    (tmp_path / "file").touch()
    PausedTrials(tmp_path / "file", warnings.append).keep(3, STATE)
    assert len(warnings) == 1
    assert warnings[0].startswith("trial 3 cannot be resumed later")


def test_a_missing_checkpoint_begins_the_training_anew(tmp_path: Path):
    warnings: list[str] = []
    assert (
        PausedTrials(tmp_path, warnings.append).checkpoint(7).resume(lambda state: state, torch.device("cpu")) is None
    )
    assert warnings == []


def test_the_oldest_go_first_by_number_and_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paused = PausedTrials(tmp_path, print)
    monkeypatch.setattr(resuming, "MOST", 2)
    for number in range(6):
        paused.keep(number, STATE)
        for path in tmp_path.iterdir():  # a file system's clock may not tell them apart
            os.utime(path, (int(path.stem.partition("-")[2]),) * 2)
    assert paused.offered() == [2, 3, 4, 5]
    monkeypatch.setattr(resuming, "MOST_BYTES", 2 * (tmp_path / "trial-5.safetensors").stat().st_size)
    paused.keep(6, STATE)
    assert len(paused.offered()) == 2


def heir(number: int, state: TrialState, **attrs: object) -> FrozenTrial:
    values = [0.5, 2.0] if state == TrialState.COMPLETE else None
    trial = create_trial(state=state, values=values, user_attrs={Attr.RESUMES: 1, **attrs})
    trial.number = number
    return trial


@pytest.mark.parametrize(
    ("heirs", "left"),
    [
        ([heir(5, TrialState.RUNNING)], ["trial-1-taken"]),
        ([heir(5, TrialState.PRUNED)], []),
        ([heir(5, TrialState.COMPLETE)], []),
        ([heir(5, TrialState.FAIL)], []),
        ([heir(5, TrialState.FAIL, fail_reason=HANDED_BACK + "x"), heir(6, TrialState.WAITING)], ["trial-1-taken"]),
        ([heir(5, TrialState.FAIL, fail_reason=HANDED_BACK + "x")], ["trial-1"]),
        ([], ["trial-1"]),
    ],
)
def test_a_taken_checkpoint_is_there_as_long_as_it_may_be_needed(tmp_path: Path, monkeypatch, heirs, left):
    paused = PausedTrials(tmp_path, print)
    paused.keep(1, STATE)
    assert paused.take(1)
    if left == ["trial-1"]:
        paused.sweep(heirs)
        assert paused.offered() == []  # whoever took it may be about to say so
        monkeypatch.setattr(resuming, "UNCLAIMED", 0.0)
    paused.sweep(heirs)
    assert [path.stem for path in tmp_path.iterdir()] == left
