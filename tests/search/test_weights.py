from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import torch
from helpers.recording import Recorder
from optuna.trial import TrialState, create_trial

from kdsearch import storage
from kdsearch.errors import KdsearchError
from kdsearch.records import Attr, Progress
from kdsearch.search import weights
from kdsearch.search.study import optimize
from kdsearch.system import files


@pytest.fixture
def study(url: str) -> optuna.Study:
    return optuna.create_study(storage=storage.open_storage(url), study_name="s", directions=["maximize"] * 2)


def end(study: optuna.Study, keeper: weights.Keeper, values: tuple[float, float]) -> int:
    trial = study.ask()
    trial.set_user_attr(Attr.CONFIG, {"width": 1})
    keeper.keep(trial, {"w": torch.tensor(values)}, values)
    study.tell(trial, values)
    return trial.number


def kept(place: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in place.glob("*.safetensors")}


def test_who_leaves_the_front_leaves_the_folder(study: optuna.Study, url: str):
    place = weights.folder(url, "s")
    keeper = weights.Keeper(place, Progress())
    for values in [(0.8, 10.0), (0.9, 5.0), (0.7, 5.0)]:  # the last is dominated from the start
        end(study, keeper, values)
    assert kept(place) == {0, 1}
    end(study, keeper, (0.85, 20.0))
    keeper.sweep(study)
    assert kept(place) == {1, 3}
    assert weights.load(url, "s", weights.named(study.trials[3]))["w"].tolist() == pytest.approx([0.85, 20.0])
    with pytest.raises(KdsearchError, match="No such file"):
        weights.load(url, "s", weights.named(study.trials[0]))
    with pytest.raises(KdsearchError, match="none were kept"):
        weights.load(url, "s", weights.named(study.trials[2]))


def test_whom_later_sittings_may_bring_to_the_front_stays(study: optuna.Study, url: str):
    place = weights.folder(url, "s")
    keeper = weights.Keeper(place, Progress())
    for values in [(0.9, 10.0), (0.8, 9.0), (0.8, 7.9), (0.95, 1.0)]:
        end(study, keeper, values)
    keeper.sweep(study)
    assert kept(place) == {0, 1, 3}  # 9 times 1.25 may exceed 10, 7.9 times 1.25 does not


def test_a_killed_workers_file_goes_and_a_running_ones_stays(study: optuna.Study, url: str):
    place = weights.folder(url, "s")
    keeper = weights.Keeper(place, Progress())
    running, killed = study.ask(), study.ask()
    for trial in (running, killed):
        trial.set_user_attr(Attr.CONFIG, {})
        keeper.keep(trial, {"w": torch.ones(1)}, (0.9, 1.0))
    study.tell(killed, state=TrialState.FAIL)
    files.save_tensors(place / f"trial-7-{'0' * 32}.safetensors", {"w": torch.ones(1)}, {})  # of a study of that name
    done = end(study, keeper, (0.95, 2.0))
    files.save_tensors(place / f"trial-{done}-{'0' * 32}.safetensors", {"w": torch.ones(1)}, {})  # and of that number
    keeper.sweep(study)
    assert len([*place.glob(f"trial-{done}-*")]) == 1
    for path in place.glob(f"trial-{done}-*"):
        path.unlink()
    assert kept(place) == {running.number}


def test_weights_of_another_digest_are_refused(study: optuna.Study, url: str):
    end(study, weights.Keeper(weights.folder(url, "s"), Progress()), (0.8, 10.0))
    (path,) = weights.folder(url, "s").iterdir()
    files.save_tensors(path, {"w": torch.zeros(2)}, {})  # whole, and another network's
    with pytest.raises(KdsearchError, match="not the trial's"):
        weights.load(url, "s", weights.named(study.trials[0]))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KdsearchError, match="must be there and whole"):
        weights.load(url, "s", weights.named(study.trials[0]))


def test_a_trial_cannot_name_a_file_elsewhere(url: str):
    trial = create_trial(values=[1, 1], user_attrs={Attr.WEIGHTS: {"file": "../../x", "digest": "0"}})
    with pytest.raises(KdsearchError) as error:
        weights.load(url, "s", weights.named(trial))
    assert str(error.value.got) == str(weights.folder(url, "s") / "x")


def test_a_folder_that_cannot_be_written_costs_no_trial(study: optuna.Study, tmp_path: Path):
    (tmp_path / "file").write_text("")
    told = Recorder()
    keeper = weights.Keeper(tmp_path / "file" / "weights", told)
    end(study, keeper, (0.8, 10.0))
    keeper.sweep(study)
    assert "weights of trial 0 were not kept" in told.warnings[0]
    assert Attr.WEIGHTS not in study.trials[0].user_attrs


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(weights.FOLDER, str(tmp_path))
    assert weights.folder("sqlite:///a/b.db", "s").parent == Path("a/b.db-weights")
    assert weights.folder("journal:a/b.log", "s").parent == Path("a/b.log-weights")
    server = weights.folder("postgresql://ann:secret@db/kd", "s")
    assert server.is_relative_to(tmp_path)
    assert server == weights.folder("postgresql://ann:other@db/kd", "s")  # a password may change
    names = {weights.folder("grpc://h:1", name).name for name in ("a/b", "a_b", "../..")}
    assert len(names) == 3
    assert not any("/" in name or name.startswith("..-") for name in names)


@pytest.mark.slow
def test_a_study_keeps_its_front(study_file: Path, url: str):
    found = optimize(study=study_file, trials=6, storage=url, train_size=200, max_epochs=2, cost="flops", device="cpu")
    assert kept(weights.folder(url, "digits")) >= {trial.number for trial in found.best_trials}
    for trial in found.best_trials:
        assert weights.load(url, "digits", weights.named(trial))
