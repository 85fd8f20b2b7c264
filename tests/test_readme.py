"""What the README shows is run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
OTHER_DATA = ("--dataset mnist", "--dataset cifar10", "folder:PATH")
SHORTER = {
    "kdsearch bench search": "--tables digits --seeds 1 --budget 60",
    "kdsearch bench tabulate": "--count 2 --epochs 1",
    "kdsearch claims": "--only 5,9",
    "kdsearch claims --dataset mnist": "--only 5",
    "kdsearch confirm": "--repeats 1 --trials 0",
    "kdsearch measure --name digits": "--trials 0",
    "python device/measure.py": "--batch 20",
    "kdsearch slides --dataset mnist": "--rows m1 --repeats 1 --train-size 300 --max-epochs 1",
    "kdsearch slides --dataset cifar10": "--rows c4 --repeats 1 --train-size 100 --max-epochs 1 --width 8",
}  # what takes minutes is run with less of it
SLIDES = ("kdsearch slides", "kdsearch claims")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith(("kdsearch", "python "))]


def shorter(command: str) -> str:
    """The command with less work, where it has much."""
    starts = [start for start in SHORTER if command.startswith(start)]
    return f"{command} {SHORTER[max(starts, key=len)]}" if starts else command


def on_other_data(*, slides: bool) -> list[str]:
    """The commands on MNIST and CIFAR-10: of the slides, or those that can be planned."""
    found = [line for line in commands() if any(data in line for data in OTHER_DATA[:2])]
    return [line for line in found if line.startswith(SLIDES) == slides]


def shell(command: str, folder: Path) -> str:
    """Runs a command as a new user would, with this interpreter's scripts first in the path."""
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", f'PATH="{scripts}:$PATH"; {command}'], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout


def test_the_two_commands_at_the_top_are_those_of_the_package() -> None:
    first, second = blocks("sh")[:2]
    assert first.strip() == "pip install -e . && kdsearch optimize"
    assert second.strip() == "pip install -e '.[test]' && pytest"


@pytest.mark.slow
def test_the_tour_on_digits_runs(tmp_path: Path) -> None:
    tour = [line for line in commands() if not any(data in line for data in (*OTHER_DATA, "dashboard", "photos"))]
    assert len(tour) >= 9
    for command in tour:
        shell(shorter(command), tmp_path)
    assert (tmp_path / "reports" / "digits.html").is_file()
    assert (tmp_path / "front.html").is_file()
    assert (tmp_path / "digits-trial-9.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("command", on_other_data(slides=True))
def test_the_slides_run_on_other_data(command: str, tmp_path: Path) -> None:
    assert command in SHORTER
    assert shell(shorter(command), tmp_path)
    assert list((tmp_path / "reports").glob("*.html"))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("command", on_other_data(slides=False))
def test_the_tour_on_other_data_can_be_planned(command: str, tmp_path: Path) -> None:
    assert "estimate" in shell(command if "--dry-run" in command else f"{command} --dry-run", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_scripts_run(number: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(blocks("python")[number], encoding="utf-8")
    shell("python script.py", tmp_path)
