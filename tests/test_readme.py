"""What the README shows is run as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdsearch.cli import app

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text(encoding="utf-8")
PAGES = [README, *((TOP / room / "README.md").read_text(encoding="utf-8") for room in ("studies", "reports"))]
OTHER_DATA = ("--dataset mnist", "--dataset cifar10", "folder:PATH")
SHORTER = {
    "kdsearch optimize --study photos.toml": "--train-size 90 --max-epochs 4 --trials 1 --cost flops",
    "kdsearch bench search": "--tables digits --seeds 1 --budget 60",
    "kdsearch bench tabulate": "--count 2 --epochs 1",
    "kdsearch claims": "--only 5",
    "kdsearch claims --dataset mnist": "--only 5",
    "kdsearch confirm": "--repeats 1 --trials 0",
    "kdsearch measure --name digits": "--trials 0",
    "python device/measure.py": "--batch 20",
    "kdsearch slides --dataset cifar10": "--rows c4 --repeats 1 --train-size 100 --max-epochs 1 --width 8",
}  # what takes minutes is run with less of it
SLIDES = ("kdsearch slides", "kdsearch claims")
ELSEWHERE = ("kdsearch slides --dataset mnist",)  # tests/cli/test_cli_slides.py runs it
LITTLE = {"train": 100, "test": 20}  # images of a class: to read all of them takes a minute


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)]


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(("kdsearch", "python "))))


def named() -> list[list[str]]:
    """The words of each command in the README's tables."""
    return [found.split() for found in re.findall(r"`kdsearch ([a-z][^`]*)`", README)]


def shorter(command: str) -> str:
    """The command with less work, where it has much."""
    starts = [start for start in SHORTER if command.startswith(start)]
    return f"{command} {SHORTER[max(starts, key=len)]}" if starts else command


def on_other_data(*, slides: bool) -> list[str]:
    """The commands on MNIST and CIFAR-10: of the slides, or those that can be planned."""
    found = [line for line in commands() if any(data in line for data in OTHER_DATA[:2]) and line not in ELSEWHERE]
    return [line for line in found if line.startswith(SLIDES) == slides]


def plans() -> list[str]:
    """The searches on MNIST and CIFAR-10, to be planned, each once."""
    planned = [line.replace(" --dry-run", "") + " --dry-run" for line in on_other_data(slides=False)]
    return list(dict.fromkeys(planned))


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


def linked() -> list[tuple[str, str]]:
    """(Page, address) of each link to a file, and of each form in which the table of reports names more files."""
    pages = [TOP / "README.md", *(path for room in ("studies", "reports") for path in (TOP / room).rglob("*.md"))]
    found = [
        (page.relative_to(TOP).as_posix(), address)
        for page in pages
        for address in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not address.startswith(("http", "mailto:"))
    ]
    for row in re.findall(r"^\| (\[.*?) \|", PAGES[2], flags=re.MULTILINE):
        names = [name.removesuffix(".md") for name in re.findall(r"\]\(([^)]+\.md)\)", row)]
        found += [("reports/README.md", name + form) for name in names for form in re.findall(r"`(\.[a-z]+)`", row)]
    return list(dict.fromkeys(found))


def test_every_link_leads_to_a_file() -> None:
    found = linked()
    assert ("reports/README.md", "bench-search.html") in found
    assert [f"{page}: {address}" for page, address in found if not ((TOP / page).parent / address).exists()] == []


def options() -> set[str]:
    """Every option of every command."""
    found = set()

    def look(command: Any) -> None:
        found.update(option for each in command.params for option in (*each.opts, *each.secondary_opts))
        for part in getattr(command, "commands", {}).values():
            look(part)

    for name in app.COMMANDS:
        look(app.loaded(name))
    return found


def test_every_option_that_a_page_names_is_one_of_a_command() -> None:
    ours, others = options(), {"--help", "--provider", "--threads"}  # the latter two: of a device's script
    assert {"--resume-trials", "--dry-run", "--rows"} <= ours
    assert [option for option in ours if "_" in option] == []
    pages = [*PAGES, (TOP / "CHANGELOG.md").read_text(encoding="utf-8")]
    named = {option for page in pages for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", page)}
    assert named - ours - others == set()


@pytest.mark.parametrize("words", named(), ids=" ".join)
def test_a_command_in_a_table_has_the_options_that_it_is_given(words: list[str]) -> None:
    options = [word for word in words if word.startswith("--")]
    name = words[: 2 if words[0] == "bench" else 1]
    helped = CliRunner().invoke(app.app, [*name, "--help"], env={"COLUMNS": "200"})
    assert helped.exit_code == 0, helped.output
    assert [option for option in options if option not in helped.output] == []


@pytest.mark.slow
def test_the_tour_on_digits_runs(tmp_path: Path) -> None:
    tour = [line for line in commands() if not any(data in line for data in (*OTHER_DATA, "dashboard", "photos"))]
    assert len(tour) >= 9
    for command in tour:
        shell(shorter(command), tmp_path)
    assert (tmp_path / "reports" / "digits.html").is_file()
    assert (tmp_path / "front.html").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_the_way_from_a_folder_of_photographs_to_a_file_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # on shared cores two threads wait for each other
    page = [line for line in commands() if "photos" in line]
    assert [line.split()[1] for line in page] == ["init", "optimize", "report", "export"]
    shell(page[0], tmp_path)
    written = (tmp_path / "photos.toml").read_text(encoding="utf-8")
    # 8x8 images; batches so small that few of them teach a ResNet18 three colours
    changes = {
        "image_size = 32": "image_size = 8",
        "lr = 0.1\n": "lr = 0.02\n",
        r"batch_size = \d+\n": "batch_size = 6\n",
    }
    for old, new in changes.items():
        written, count = re.subn(old, new, written, count=1)
        assert count == 1, old
    (tmp_path / "photos.toml").write_text(written, encoding="utf-8")
    for command in page[1:]:
        shell(shorter(command), tmp_path)
    assert (tmp_path / "reports" / "photos.html").is_file()
    assert list((tmp_path / "shipped").glob("trial-*.onnx"))


@pytest.fixture(scope="module")
def little_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of real images, few of CIFAR-10."""
    source, folder = Path(os.environ["KDSEARCH_DATA_DIR"]), tmp_path_factory.mktemp("data")
    (folder / "MNIST").symlink_to(source / "MNIST")
    for part, count in LITTLE.items():
        for found in (source / "cifar10" / part).iterdir():
            (folder / "cifar10" / part / found.name).mkdir(parents=True)
            for image in sorted(found.iterdir())[:count]:
                (folder / "cifar10" / part / found.name / image.name).symlink_to(image)
    return folder


@pytest.fixture
def on_little_data(little_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDSEARCH_DATA_DIR", str(little_data))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.usefixtures("on_little_data")
@pytest.mark.parametrize("command", on_other_data(slides=True))
def test_the_slides_run_on_other_data(command: str, tmp_path: Path) -> None:
    assert command in SHORTER
    assert shell(shorter(command), tmp_path)
    assert list((tmp_path / "reports").glob("*.html"))


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.usefixtures("on_little_data")
@pytest.mark.parametrize("command", plans())
def test_the_tour_on_other_data_can_be_planned(command: str, tmp_path: Path) -> None:
    assert "estimate" in shell(command, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_scripts_run(number: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(blocks("python")[number], encoding="utf-8")
    shell("python script.py", tmp_path)
