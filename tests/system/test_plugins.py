from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import kdsearch

PLUGIN = Path(__file__).parents[1] / "plugin"
LITTLE = ("--train-size", "100", "--max-epochs", "1", "--cost", "flops", "--trials", "1")


def run(scratch: Path, *words: str) -> subprocess.CompletedProcess[str]:
    place = {"KDSEARCH_CACHE_DIR": str(scratch / "cache"), "PYTHONPATH": os.pathsep.join(paths(scratch))}
    command = [sys.executable, "-m", "kdsearch", *words]
    return subprocess.run(command, cwd=scratch, env=os.environ | place, capture_output=True, text=True, check=False)


def paths(scratch: Path) -> list[str]:
    return [str(scratch / "site"), str(Path(kdsearch.__file__).parents[1])]


def study(text: str) -> str:
    head, _, rest = text.partition("[space]")
    _, _, tail = rest.partition("loss_weight")
    space = "[space]\nchannels = [4, 8]\ndepth = { low = 1, high = 2 }\nloss_weight" + tail.partition("[anchors]")[0]
    head = head.replace('name = "digits"', 'name = "evenness"').replace('family = "mlp"', 'family = "separable"')
    return head + space


def install(scratch: Path, name: str, entries: str) -> Path:
    """A package by its metadata, as pip leaves them."""
    info = scratch / "site" / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(entries)
    return info


@pytest.mark.slow
def test_a_broken_and_a_hidden_plugin_are_named_and_hurt_nobody(tmp_path: Path) -> None:
    install(tmp_path, "bad-one", "[kdsearch.students]\nbroken = no_such_module:X\nmlp = no_such_module:X\n")
    told = run(tmp_path, "doctor", "--json")
    assert told.returncode == 0, told.stderr
    assert "bad-one 0.1.0, broken" in told.stdout
    assert "kdsearch has one of that name" in told.stdout
    assert run(tmp_path, "optimize", "--dry-run", *LITTLE).returncode == 0


@pytest.mark.slow
def test_the_example_works_and_so_does_its_uninstallation(tmp_path: Path, digits_text: str) -> None:
    target = ("--target", str(tmp_path / "site"), "--no-deps", "--no-build-isolation", "--no-index", "-q")
    packages = [p for p in sys.path if (Path(p) / "setuptools").is_dir()][::-1]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(packages)}
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(PLUGIN), str(source)], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", *target, str(source)], env=env, check=True)
    (tmp_path / "mine.toml").write_text(study(digits_text), encoding="utf-8")
    search = ("--study", "mine.toml", *LITTLE)
    done = run(tmp_path, "optimize", *search)
    assert done.returncode == 0, done.stderr
    assert "from kdsearch-example 0.1.0" in run(tmp_path, "doctor", "--json").stdout
    subprocess.run(["rm", "-r", str(tmp_path / "site")], check=True)
    gone = run(tmp_path, "optimize", *search)
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)
    assert "evenness" in gone.stderr
    assert run(tmp_path, "optimize", "--dry-run", *LITTLE).returncode == 0
