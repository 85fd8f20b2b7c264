"""Names that a terminal would obey, passwords where none is expected, a dashboard that only this machine reaches."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from helpers.commands import Run
from optuna.trial import TrialState, create_trial
from rich.console import Console

from kdsearch import storage
from kdsearch.cli import output
from kdsearch.cli.progress import ConsoleProgress, front_table
from kdsearch.errors import KdsearchError, shown
from kdsearch.records import Attr, EpochRecord
from kdsearch.system.files import write_text

ORDERS = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\b\u202e"  # clears, sets the title, paints, overwrites, turns around
NAME = f"{ORDERS}\nwarning: [red]all is lost[/red] [link=http://x] :bomb: \\"


def test_what_a_terminal_obeys_is_written_out_and_all_else_stays():
    assert shown("a\x1b[31mb\tc\n\x7f\x9b\u202ed") == r"a\x1b[31mb\tc\n\x7f\x9b\u202ed"
    assert shown("\ud800") == r"\ud800"
    assert shown("Zürich 学習 🙂 é") == "Zürich 学習 🙂 é"
    assert str(KdsearchError("a name must be kind", got=ORDERS)).isprintable()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_names_as_they_are_and_obeys_none(terminal: bool):
    out = io.StringIO()
    plain = Console(file=out, force_terminal=terminal, width=400, color_system=None, legacy_windows=False)
    with ConsoleProgress(plain) as progress:
        progress.study_started(1, 4)
        progress.trial_started(1, NAME, {NAME: NAME})
        progress.trial_epoch(1, EpochRecord(1, 0.1, 0.5, 1.0), 2)
        progress.trial_finished(1, "FAIL", NAME, counted=False)
        progress.warning(NAME)
    member = {"trial": 1, "anchor": NAME, "ratio": 2.0, "ratio_low": None, "ratio_high": None, "accuracy": 0.5}
    member |= {"test_accuracy": None, "best_epoch": None, "params": {NAME: NAME}}
    plain.print(front_table({"study": NAME, "hypervolume": 1.0, "front": [member]}))
    text = out.getvalue()
    for order in ("\x1b[2J", "\x1b]0;", "\x07", "\x9b", "\b", "\u202e"):
        assert order not in text
    assert r"\x1b[2J\x1b]0;owned\x07\x9b31m" in text
    for kept in ("[red]all is lost[/red]", "[link=http://x]", ":bomb:"):
        assert kept in text
    assert "\nwarning: [red]" not in text  # no name makes a line of its own


def test_commands_print_hostile_studies_in_lines_of_their_own(kdsearch: Run, tmp_path: Path):
    url = f"journal:{tmp_path}/kd.log"
    study = optuna.create_study(storage=storage.open_storage(url), study_name=NAME, directions=["maximize"] * 2)
    attrs = {Attr.CONFIG: {"width": NAME}, Attr.FAIL_REASON: NAME, Attr.ANCHOR: NAME}
    curve = {"0": [None, 2.0], "1": [0.5, 2.0]}
    done = {Attr.CONFIG: {"width": NAME, NAME: 1}, Attr.ANCHOR: NAME, Attr.CURVE: curve, Attr.TEST_ACCURACY: 0.5}
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attrs))
    study.add_trial(create_trial(state=TrialState.COMPLETE, values=[0.5, 2.0], user_attrs=done | {"accuracy": 0.5}))
    words = ["--storage", url, "--name", NAME]
    results = [
        kdsearch("status", *words),
        kdsearch("status", *words, "--json"),
        kdsearch("status", *words, "--trial", "0"),
        kdsearch("status", *words, "--trial", "0", "--json"),
        kdsearch("report", *words),
        kdsearch("status", "--storage", url, "--name", "nobody"),
    ]
    assert [result.code for result in results] == [0, 0, 0, 0, 0, 1]
    for result in results:
        text = result.out + result.err
        assert all(line.isprintable() for line in text.split("\n"))
        assert not any(line.startswith("warning:") for line in text.split("\n"))
    assert json.loads(results[1].out)["study"] == NAME
    assert json.loads(results[3].out)["params"] == {"width": NAME}
    assert [path.parent for path in tmp_path.rglob("*.html")] == [tmp_path / "reports"]


def test_half_a_character_keeps_no_report_from_being_written(tmp_path: Path):
    write_text(tmp_path / "r.html", "a \ud800 b é")
    assert (tmp_path / "r.html").read_text(encoding="utf-8") == "a \\ud800 b é"


@pytest.mark.parametrize("url", ["postgresql://ann:s%40cret@db/kd", "mysql://db/kd?password=s%40cret", None])
def test_the_command_that_a_report_names_has_no_password(monkeypatch: pytest.MonkeyPatch, url: str | None):
    given = url or "postgresql://ann:s%40cret@db/kd"
    words = ["--storage", given, f"--storage={given}", "--storage", "redis://bob:other-s@cret@host/0"]
    monkeypatch.setattr(sys, "argv", ["kdsearch", "optimize", *words, "--name", "a b", "--trials", "3"])
    line = output.command_line(url)
    assert "cret" not in line
    assert line.endswith("--name 'a b' --trials 3")


@pytest.mark.slow
def test_the_dashboard_answers_this_machine_alone(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    words = [sys.executable, "-m", "kdsearch", "dashboard", "--port", str(port)]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while not answers("127.0.0.1", port):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            # bound to every address, it would answer at any of these as well
            assert not answers("127.0.0.2", port)
            assert not answers("::1", port)
        finally:
            server.kill()


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True
