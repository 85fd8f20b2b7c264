from __future__ import annotations

import json
import signal
from pathlib import Path

import optuna
import pytest
from helpers.commands import Run, refused
from helpers.processes import SHORT, started, until

from kdsearch import storage
from kdsearch.records import StudyAttr, confirmed_runs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("teacher")]
STUDY = ("optimize", "--trials", "2", *SHORT)


def stored(url: str) -> int:
    """How many runs the study holds now."""
    backend = storage.open_storage(url, log=False)
    attrs = optuna.load_study(study_name="digits", storage=backend).user_attrs
    backend.remove_session()
    return sum(len(confirmed_runs(value)) for key, value in attrs.items() if key.startswith(StudyAttr.CONFIRMED))


def test_digits_from_search_to_confirmation(kdsearch: Run, tmp_path: Path) -> None:
    front = json.loads(kdsearch(*STUDY, "--json").out)["front"]
    done = kdsearch("confirm", "--repeats", "2", "--device", "cpu", "--report", "front.html", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert [row["trial"] for row in found["trials"]] == sorted(member["trial"] for member in front)
    searched = {member["trial"]: member for member in front}
    for row in found["trials"]:
        assert row["search_test_accuracy"] == searched[row["trial"]]["test_accuracy"]
        assert row["epochs"] == searched[row["trial"]]["best_epoch"]
        assert row["test_low"] <= row["test_accuracy"] <= row["test_high"]
        assert row["ratio"] == row["ratio_low"] == row["ratio_high"] == row["search_ratio"]  # counted operations
    assert found["sentence"].startswith("Confirmed with 2 seeds")
    assert found["sentence"] in done.err
    assert (tmp_path / "front.html").is_file()
    assert json.loads(kdsearch("confirm", "--repeats", "2", "--device", "cpu", "--json").out) == found

    number = str(front[0]["trial"])
    single = kdsearch("train", "--trial", number, "--whole", "--device", "cpu", "--json")
    scores = json.loads(single.out)
    assert (scores["whole"], scores["accuracy"], scores["epoch"]) == (True, None, front[0]["best_epoch"])
    assert scores["weights"] == f"digits-trial-{number}-whole.safetensors"
    assert (tmp_path / scores["weights"]).stat().st_size > 1000
    told = kdsearch("train", "--trial", number, "--whole", "--device", "cpu").out
    assert "on the whole training set" in told

    refused(kdsearch("confirm", "--repeats", "0"), "--repeats", "0")
    refused(kdsearch("confirm", "--trials", "a,b"), "--trials", "3,7,9")
    refused(kdsearch("confirm", "--trials", "99"), "99", "0 to 1")
    refused(kdsearch("train", "--trial", "99", "--whole"), "99", "0 to 1")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_end_loses_one_run_at_most_and_the_same_command_goes_on(
    number: int, code: int, kdsearch: Run, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/kdsearch.db"
    kdsearch(*STUDY)
    with started("confirm", "--repeats=900", "--device=cpu", "--trials=0", url=url, folder=tmp_path) as process:
        until(lambda: stored(url) >= 2)
        process.send_signal(number)
        assert process.wait(timeout=30) == code
    kept = stored(url)
    log = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert "Traceback" not in log
    assert log.count("complete") <= kept <= log.count("complete") + 1
    again = kdsearch("confirm", "--repeats", str(kept + 1), "--device", "cpu", "--trials", "0", "--json")
    assert f"the study holds {kept} finished runs; going on to {kept + 1}" in again.err
    assert json.loads(again.out)["trials"][0]["repeats"] == kept + 1
