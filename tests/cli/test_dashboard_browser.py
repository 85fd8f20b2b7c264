"""The dashboard of a study that is still running, opened in a real browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("KDSEARCH_CHROMIUM", "/usr/bin/chromium")
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def running(tmp_path: Path, port: int) -> Iterator[str]:
    """A dashboard, started before the study's storage exists, and a study that is running; its address."""
    begin = [sys.executable, "-m", "kdsearch"]
    work = ["--cost", "flops", "--train-size", "200", "--max-epochs", "20", "--trials", "400", "--device", "cpu"]
    with (
        subprocess.Popen([*begin, "dashboard", "--port", str(port)], cwd=tmp_path, stderr=subprocess.DEVNULL) as server,
        subprocess.Popen([*begin, "optimize", *work], cwd=tmp_path, stderr=subprocess.DEVNULL) as study,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/api/studies", '"digits"')
            wait_for(f"http://127.0.0.1:{port}/api/studies/1?after=0", '"state": "Complete"')
            yield f"http://127.0.0.1:{port}"
            assert study.poll() is None, "the study ended before it was looked at"
        finally:
            server.kill()
            study.kill()


def wait_for(url: str, text: str, *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if text in answer.read().decode():
                    return
        except OSError:
            pass
        time.sleep(0.3)
    pytest.fail(f"{url} did not answer with {text} in {seconds:g} s")


def test_the_dashboard_shows_study_metrics_and_trials(running: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{running}/dashboard")
        page.get_by_text("digits").first.wait_for(timeout=20_000)
        page.goto(f"{running}/dashboard/studies/1")
        for metric in ("accuracy", "ratio"):  # names of the objectives in the plots' menus
            page.get_by_text(metric, exact=True).first.wait_for(timeout=20_000)
        page.goto(f"{running}/dashboard/studies/1/trials")
        page.get_by_text("Trial 0").first.wait_for(timeout=20_000)
        text = page.inner_text("body")
        picture = os.environ.get("KDSEARCH_SCREENSHOTS")
        if picture:
            page.screenshot(path=str(Path(picture) / "dashboard.png"))
        browser.close()
    assert "anchor m1" in text
    assert problems == []
