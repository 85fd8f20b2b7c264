"""What all tests share: a cache of their own, no storage or data from the environment, a tiny study on digits."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from helpers.commands import Result, Run
from helpers.postgres import Server, serving
from PIL import Image

from kdsearch import cli, spec
from kdsearch.data import ImageSet
from kdsearch.distil.teacher import Teacher, obtain
from kdsearch.measure import latency
from kdsearch.search import retime
from kdsearch.search.plan import Plan, make_plan
from kdsearch.search.run_options import Request
from kdsearch.search.workshop import Workshop

hypothesis.settings.register_profile(
    "tests", deadline=None, derandomize=True, database=None, max_examples=60
)  # derandomize: the same examples every time
hypothesis.settings.load_profile("tests")

COLOURS = {"blue": (20, 20, 200), "green": (20, 200, 20), "red": (200, 20, 20)}
TINY = {"train_size": 200, "max_epochs": 2, "device": "cpu", "cost": "flops"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_data = pytest.mark.skip(reason="KDSEARCH_DATA_DIR is not set")
    no_cuda = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("real_data") and not os.environ.get("KDSEARCH_DATA_DIR"):
            item.add_marker(no_data)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(no_cuda)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test that was skipped although `.ci/run` says that this machine serves its marks."""
    report = yield
    served = set(os.environ.get("KDSEARCH_REQUIRED_MARKS", "").split())
    wanted = {mark.name for mark in item.iter_markers()} & {"slow", "cuda", "browser", "postgres", "real_data", "peers"}
    if report.skipped and served and wanted <= served:
        report.outcome = "failed"
        report.longrepr = f"skipped, although it is served here ({', '.join(sorted(wanted))}): {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _own_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for the whole session, so that a teacher is trained once; two cores are shared, so one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("KDSEARCH_WEIGHTS_DIR", str(tmp_path_factory.mktemp("weights")))
        patch.delenv("OPTUNA_STORAGE", raising=False)
        yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_real_data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("real_data") is None:
        monkeypatch.delenv("KDSEARCH_DATA_DIR", raising=False)


@pytest.fixture(scope="session")
def plan() -> Plan:
    """Digits, 200 images, 2 epochs."""
    return make_plan(Request(dataset="digits", **TINY))


@pytest.fixture(scope="session")
def teacher(plan: Plan) -> Teacher:
    """The plan's teacher: trained once a session."""
    return obtain(plan.spec.teacher, plan.split)


@pytest.fixture(scope="session")
def workshop(plan: Plan, teacher: Teacher) -> Workshop:
    return Workshop(plan.spec, plan.split, teacher, plan.cost)


@pytest.fixture(scope="session")
def digits_text() -> str:
    """The shipped study file for digits."""
    return spec.shipped("digits").read_text(encoding="utf-8")


@pytest.fixture
def study_file(tmp_path: Path, digits_text: str) -> Path:
    """The shipped study of digits with the first two anchors alone, and so with the same teacher."""
    path = tmp_path / "study.toml"
    path.write_text(digits_text.partition("m3 = ")[0], encoding="utf-8")
    return path


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A storage of its own: a journal, which is quicker to make than tables."""
    return f"journal:{tmp_path / 'study.log'}"


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server; who needs it is marked `postgres`."""
    with serving() as running:
        yield running
        gc.collect()


@pytest.fixture
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real timings, of few pairs and with no rest between sittings."""
    monkeypatch.setattr(latency, "MAX_PAIRS", latency.MIN_PAIRS)
    for module in (latency, retime):
        monkeypatch.setattr(module, "APART", 0.0)


@pytest.fixture
def noise() -> ImageSet:
    """40 random images of 1x4x4 in two classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return ImageSet(images, torch.arange(40) % 2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Noisy images of three colours, 8x8: 40 of each to train on, 10 to test on."""
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 10)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(random.normal(colour, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def kdsearch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["kdsearch", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run
