"""Two workers write to a study for a minute while its page is asked for: every answer is whole, and it is drawn."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from helpers.processes import SHORT, started, until

SECONDS = float(os.environ.get("KDSEARCH_LIVE_SECONDS", "60"))
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def answer(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(address, timeout=20) as reply:
        assert reply.status == 200
        found: dict[str, Any] = json.loads(reply.read())
    return found


def is_up(address: str) -> bool:
    try:
        return bool(answer(f"{address}/api/studies/1?after=0")["plotly_graph_objects"])
    except (OSError, AssertionError):
        return False


def poll(address: str) -> tuple[int, set[str], set[str]]:
    """Asks until the time is over; returns how often, and the different figures and notes that were seen."""
    polls, figures, notes = 0, set(), set()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        page = answer(f"{address}/api/studies/1?after=0")
        (ours,) = page["plotly_graph_objects"]
        assert ours["id"] == "kdsearch-front"
        assert go.Figure(json.loads(ours["graph_object"])).data
        note = page["note"]["body"]
        assert re.match(r"\*\*(Runs until|The run is over)", note)
        assert note.endswith("stays as it is.*\n")
        figures.add(ours["graph_object"])
        notes.add(note)
        polls += 1
        time.sleep(0.05)
    return polls, figures, notes


def drawn(address: str) -> int:
    """Points of our figure that a browser draws on the study's page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        path = os.environ.get("KDSEARCH_CHROMIUM", "/usr/bin/chromium")
        browser = tools.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(f"{address}/dashboard/studies/1")
        ours = page.locator("[id='user-defined-plot:kdsearch-front'] .point")
        ours.first.wait_for(state="attached", timeout=30_000)
        count = ours.count()
        browser.close()
    return count


def test_every_poll_is_valid_while_two_workers_write(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    url, address = f"sqlite:///{tmp_path}/live.db", f"http://127.0.0.1:{port}"
    work = ["optimize", *SHORT, "--trials=5000", "--workers=2"]
    with (
        started(*work, url=url, folder=tmp_path) as study,
        started("dashboard", f"--port={port}", url=url, folder=tmp_path) as server,
    ):
        until(lambda: is_up(address), 90)
        with ThreadPoolExecutor(1) as beside:  # a browser looks at the page in the minute in which it is polled
            points = beside.submit(drawn, address)
            polls, figures, notes = poll(address)
            assert points.result() > 0
        assert study.poll() is None, "the study ended before it was looked at"
        assert server.poll() is None
        study.terminate()
        assert study.wait(timeout=30) == 143
    assert polls > SECONDS
    assert len(figures) >= 2
    assert len(notes) >= 2
    for log in tmp_path.glob("*.log"):
        text = log.read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in text
        assert '" 500 ' not in text
        assert "late" not in text
    print(f"{polls} polls, {len(figures)} figures of at most {max(map(len, figures))} characters")
    print(f"{len(notes)} notes of at most {max(map(len, notes))}")
