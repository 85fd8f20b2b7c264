from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import optuna
import pytest
import typer
from helpers.commands import Run, refused
from PIL import Image

from kdsearch import __version__
from kdsearch.cli import app
from kdsearch.storage import DEFAULT_STORAGE, open_storage

DIGITS = ("optimize", "--cost", "flops", "--seed", "1", "--train-size", "200", "--max-epochs", "2", "--device", "cpu")


def test_version_and_help_name_every_command(kdsearch: Run) -> None:
    assert kdsearch("--version").out == f"kdsearch {__version__}\n"
    text = kdsearch("--help").out
    for command in ("optimize", "report", "status", "dashboard", "train", "worker", "init", "doctor"):
        assert command in text


def test_usage_errors_exit_with_2(kdsearch: Run) -> None:
    assert kdsearch("optimize", "--no-such-option").code == 2
    assert kdsearch("optimize", "--trials", "0").code == 2
    assert kdsearch("optimize", "--epochs-budget", "0").code == 2
    assert kdsearch("optimize", "--timeout", "-1").code == 2
    assert kdsearch("train").code == 2


def test_the_readme_mentions_every_command() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for command in app.COMMANDS:
        assert f"kdsearch {command}" in readme


@pytest.mark.parametrize("name", app.COMMANDS)
def test_the_list_of_commands_says_what_each_says_of_itself(name: str) -> None:
    room, words = app.COMMANDS[name]
    command = getattr(importlib.import_module(f"kdsearch.cli.{room}"), name)
    own = command.info.help if isinstance(command, typer.Typer) else inspect.getdoc(command)
    assert " ".join(own.partition("\n\n")[0].split()) == words


def test_init_writes_a_study_file_once(kdsearch: Run, tmp_path: Path) -> None:
    assert kdsearch("init", "--dataset", "mnist").code == 0
    assert tomllib.loads((tmp_path / "study.toml").read_text())["data"]["name"] == "mnist"
    (tmp_path / "study.toml").write_text("mine")
    refused(kdsearch("init"), "study.toml", "--force")
    assert (tmp_path / "study.toml").read_text() == "mine"
    assert kdsearch("init", "--force", "--dataset", "folder:pictures").code == 0
    assert tomllib.loads((tmp_path / "study.toml").read_text())["data"]["name"] == "folder:pictures"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--dataset", "imagenet"), ("imagenet", "digits")),
        (("--study", "nowhere.toml"), ("nowhere.toml", "kdsearch init")),
        (("--device", "cuda:99"), ("cuda:99", "--device cpu")),
        (("--device", "tpu"), ("tpu", "auto, cpu, cuda")),
        (("--sampler", "magic"), ("magic", "tpe")),
        (("--pruner", "magic"), ("magic", "pareto")),
        (("--cost", "magic"), ("magic", "latency")),
        (("--dataset", "folder:nowhere"), ("nowhere", "PATH/train/CLASS/")),
        (("--storage", "sqlite:////no/such/folder/x.db"), ("/no/such/folder", "--storage")),
        (("--storage", "nonsense"), ("--storage",)),
    ],
)
def test_bad_input_gets_one_line(
    kdsearch: Run, tmp_path: Path, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    refused(kdsearch("optimize", *words), *expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("lr = 2e-3", "learning_rate = 2e-3", "teacher.recipe.learning_rate"),
        ("low = 1.0, high = 20.0", "low = 20.0, high = 1.0", "space.temperature"),
        ("m1 = { width = 50", "m1 = { width = 51", "anchors.m1.width"),
        ("[latency]", "[latency", "TOML"),
    ],
)
def test_a_bad_study_file_is_refused_by_its_key(
    kdsearch: Run, tmp_path: Path, old: str, new: str, expected: str
) -> None:
    kdsearch("init")
    file = tmp_path / "study.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    refused(kdsearch("optimize", "--study", "study.toml"), "study.toml", expected)


@pytest.mark.parametrize("width", ["[8, 1000000000]", "{ low = 1, high = 3, stages = 2 }"])
def test_students_that_cannot_be_built_are_refused_before_any_work(kdsearch: Run, tmp_path: Path, width: str) -> None:
    kdsearch("init")
    file = tmp_path / "study.toml"
    text = file.read_text().partition("[anchors]")[0]
    file.write_text(re.sub(r"(?m)^width = .*$", f"width = {width}", text))
    refused(kdsearch("optimize", "--study", "study.toml", "--dry-run"), "space.width must")


def test_broken_folders_are_refused(kdsearch: Run, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "pictures" / part / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / part / "cat" / "1.png")
    assert "at least two classes" in refused(kdsearch("optimize", "--dataset", "folder:pictures"), "pictures")
    for part in ("train", "test"):
        (tmp_path / "pictures" / part / "dog").mkdir()
        for name in ("cat/2.png", "dog/bad.png", "dog/worse.png"):  # two a class, or none is left to validate on
            (tmp_path / "pictures" / part / name).write_bytes(b"no image")
    assert "bad.png" in refused(kdsearch("optimize", "--dataset", "folder:pictures"), "no image")
    assert not list(tmp_path.glob("kdsearch.db*"))  # nothing was begun


def test_status_prints_one_trial_and_why_it_ended(kdsearch: Run) -> None:
    study = optuna.create_study(storage=open_storage("journal:x.log"), study_name="s", directions=["maximize"] * 2)
    why = {"step": 2, "at": 9, "forecast": 0.75, "trials": [0], "reason": "it would not beat trial 0"}
    curve = {"0": [None, 3.0], "1": [0.5, 3.0], "2": [0.6, 3.0]}
    attrs = {"curve": curve, "config": {"width": 8, "epochs": 9}, "ratio": 3.0, "pruned_by": why}
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, user_attrs=attrs))
    place = ("status", "--storage", "journal:x.log", "--trial")
    shown = kdsearch(*place, "0")
    assert shown.code == 0
    assert "state       pruned\n" in shown.out
    assert "epochs      2 of 9\n" in shown.out
    assert "why         at epoch 2: it could hope for 75.00 % by epoch 9, which would not beat trial 0\n" in shown.out
    found = json.loads(kdsearch(*place, "0", "--json").out)
    assert (found["state"], found["best_epoch"], found["accuracy"], found["why"]) == ("pruned", 2, 0.6, why)
    refused(kdsearch(*place, "7"), "--trial must be in the study, which holds trials 0 to 0 (got 7)")
    assert kdsearch(*place, "-1").code == 2
    whole = kdsearch("status", "--storage", "journal:x.log")
    assert "1 pruned" in whole.err
    assert "spent 2 epochs on 1 trial; pruning saved 7 of 9 planned epochs" in whole.err


@pytest.mark.parametrize("url", ["sqlite:///nothere.db", "journal:nothere.log"])
def test_commands_that_need_a_study_make_no_storage(kdsearch: Run, tmp_path: Path, url: str) -> None:
    for words in (
        ["status"], ["report"], ["pick"], ["export", "--out", "x"], ["measure"], ["train", "--trial", "1"], ["confirm"],
        ["worker", "--name", "s"],
    ):  # fmt: skip
        refused(kdsearch(*words, "--storage", url), "there is no such file", f"got {url}", "kdsearch optimize")
    assert not list(tmp_path.glob("nothere*"))


def test_weights_that_would_replace_a_study_file_are_refused_before_the_training(kdsearch: Run, tmp_path: Path) -> None:
    kdsearch("init")
    before = (tmp_path / "study.toml").read_bytes()
    optuna.create_study(storage=open_storage("journal:x.log"), study_name="s", directions=["maximize"] * 2)
    words = ("train", "--trial", "0", "--storage", "journal:x.log", "--out", "study.toml")
    refused(kdsearch(*words), "must not replace a file that is not safetensors")
    assert (tmp_path / "study.toml").read_bytes() == before


def test_a_report_that_cannot_be_written_is_refused_before_the_search(kdsearch: Run, tmp_path: Path) -> None:
    (tmp_path / "reports").touch()
    for words in ((), ("--report", "reports/r.html"), ("--report", "/dev/null")):
        refused(kdsearch(*DIGITS, "--trials", "1", *words), "file")
    assert not list(tmp_path.glob("kdsearch.db*"))


def test_reports_of_studies_with_similar_or_long_names_keep_apart(kdsearch: Run, tmp_path: Path) -> None:
    backend = open_storage("journal:x.log")
    names = ["a_b", "a b", "a/b", "n" * 300]
    for name in names:
        optuna.create_study(storage=backend, study_name=name, directions=["maximize"] * 2)
        assert kdsearch("report", "--storage", "journal:x.log", "--name", name, "--format", "md").code == 0
    assert len(list((tmp_path / "reports").iterdir())) == len(names)
    assert (tmp_path / "reports" / "a_b.md").exists()


def test_studies_that_do_not_exist_are_named(kdsearch: Run) -> None:
    open_storage(DEFAULT_STORAGE)
    refused(kdsearch("report"), "none yet", "kdsearch optimize")
    refused(kdsearch("status", "--name", "gone"), "gone")
    refused(kdsearch("train", "--trial", "1", "--name", "gone"), "gone")


def test_a_password_is_never_printed(kdsearch: Run) -> None:
    result = kdsearch("status", "--storage", "postgresql+psycopg://ann:secret@127.0.0.1:1/kd")
    refused(result, "127.0.0.1")
    assert "secret" not in result.err


def test_doctor_finds_versions_and_data(kdsearch: Run, tmp_path: Path) -> None:
    (tmp_path / "cifar10" / "train").mkdir(parents=True)
    found = {f["what"]: f for f in json.loads(kdsearch("doctor", "--json", "--data-dir", str(tmp_path)).out)}
    assert found["torch"]["found"].startswith("2.")
    assert found["data: cifar10"]["remedy"] == ""
    assert "--data-dir" in found["data: mnist"]["remedy"]
    assert "torch" in kdsearch("doctor").out


def test_doctor_shows_bfloat16_and_what_was_chosen(kdsearch: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path))
    timed = {"precision": "bfloat16", "float32": 0.3, "bfloat16": 0.2}
    (tmp_path / "precision.json").write_text(json.dumps({"resnet 3x32x32, some CPU": timed}))
    monkeypatch.setattr("kdsearch.system.machine.bf16_instructions", lambda: ["avx512_bf16", "amx_bf16"])
    found = {f["what"]: f["found"] for f in json.loads(kdsearch("doctor", "--json").out)}
    assert found["bfloat16 on the CPU"] == "avx512_bf16, amx_bf16"
    chosen = found["precision: resnet 3x32x32, some CPU"]
    assert chosen == "bfloat16: bfloat16 is 1.50 times as fast as float32 in a few timed steps"


@pytest.mark.parametrize("command", ["optimize", "slides", "bench train"])
def test_an_unknown_precision_is_refused_in_one_line(kdsearch: Run, command: str) -> None:
    refused(kdsearch(*command.split(), "--precision", "float16"), "--precision must be known")


@pytest.mark.slow
def test_help_is_instant_and_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['kdsearch', 'optimize', '--help']\n"
        "import atexit; atexit.register(lambda: print('HEAVY', sorted({'torch', 'optuna', 'plotly', 'pandas', "
        "'sklearn'} & set(sys.modules))))\n"
        "from kdsearch.cli import main; main()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "--max-epochs" in shown.stdout
    assert "HEAVY []" in shown.stdout


@pytest.mark.slow
def test_the_whole_way_on_digits(kdsearch: Run, tmp_path: Path) -> None:
    plan = json.loads(kdsearch(*DIGITS, "--trials", "11", "--dry-run", "--json").out)
    assert plan["images"]["train"] == 200
    assert plan["seconds"]["all"] > 0
    assert plan["trials"] == 11
    planned = kdsearch(*DIGITS, "--epochs-budget", "30", "--timeout", "600", "--dry-run").out
    assert "study     digits: 30 epochs or 600 s of digits" in planned
    assert "estimate" in planned
    assert "without pruning" not in planned
    assert not list(tmp_path.iterdir())

    first = kdsearch(*DIGITS, "--trials", "11", "--json")
    assert first.code == 0
    result = json.loads(first.out)
    assert result["trials"]["complete"] + result["trials"]["pruned"] == 11
    assert (tmp_path / result["report"]).stat().st_size > 100_000
    assert "trial 0 (m1)" in first.err
    assert re.search(r"spent \d+ epochs on 11 trials", first.err)
    for member in result["front"]:
        assert member["ratio_low"] <= member["ratio"] <= member["ratio_high"]
        assert 0 <= member["test_accuracy"] <= 1

    again = json.loads(kdsearch(*DIGITS, "--trials", "11", "--json").out)
    assert again == result

    refused(kdsearch(*DIGITS[:-3], "1", "--device", "cpu"), "space.epochs.high: 2 -> 1", "--name")
    assert json.loads(kdsearch("status", "--json").out)["front"] == result["front"]
    assert json.loads(kdsearch("report", "--report", "r.html", "--json").out)["report"] == "r.html"
    assert "https://cdn" in kdsearch_page(kdsearch, tmp_path, "cdn")

    member = result["front"][0]
    trained = kdsearch("train", "--trial", str(member["trial"]), "--device", "cpu", "--json")
    scores = json.loads(trained.out)
    assert scores["accuracy"] == member["accuracy"]
    assert scores["test_accuracy"] == member["test_accuracy"]
    assert (tmp_path / scores["weights"]).stat().st_size > 1000
    refused(kdsearch("train", "--trial", "999"), "999", "0 to 10")


def kdsearch_page(kdsearch: Run, folder: Path, plotlyjs: str) -> str:
    assert kdsearch("report", "--report", "small.html", "--plotlyjs", plotlyjs).code == 0
    return (folder / "small.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_fewer_trials_than_anchors_run_the_first_of_them(kdsearch: Run) -> None:
    result = kdsearch(*DIGITS, "--trials", "2", "--json")
    assert re.search(r"m3, m4, .*m9 will not run", result.err)
    assert {member["anchor"] for member in json.loads(result.out)["front"]} <= {"m1", "m2"}


@pytest.mark.slow
def test_a_run_of_failing_trials_ends_with_their_reason(kdsearch: Run, tmp_path: Path) -> None:
    kdsearch("init")
    file = tmp_path / "study.toml"
    before, after = file.read_text().split("[student.recipe]")
    file.write_text(f"{before}[student.recipe]{after.replace('lr = 1e-3', 'lr = 1e30')}")
    ended = kdsearch(*DIGITS, "--study", "study.toml", "--json")
    assert ended.code == 1
    assert ended.out == ""
    assert "5 trials in a row failed" in ended.err
    assert "must be finite" in ended.err
    assert json.loads(kdsearch("status", "--json").out)["trials"]["failed"] == 5
    assert (tmp_path / "reports" / "digits.html").is_file()


@pytest.mark.slow
def test_optuna_reads_the_study(kdsearch: Run, tmp_path: Path) -> None:
    result = json.loads(kdsearch(*DIGITS, "--trials", "3", "--json").out)
    words = ["best-trials", "--study-name", "digits", "--storage", "sqlite:///kdsearch.db", "-f", "json"]
    optuna = Path(sys.executable).with_name("optuna")
    shown = subprocess.run([optuna, *words], capture_output=True, text=True, check=True, cwd=tmp_path)
    numbers = {trial["number"] for trial in json.loads(shown.stdout)}
    assert numbers == {member["trial"] for member in result["front"]}
