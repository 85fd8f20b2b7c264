from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
import pytest
from helpers.browsing import HOSTILE, opened
from playwright.sync_api import Browser, Page
from plotly.subplots import make_subplots

from kdsearch.reporting.figures.style import layout
from kdsearch.reporting.pages import document
from kdsearch.reporting.pages.document import Document, Grid, Section

pytestmark = [pytest.mark.browser, pytest.mark.slow]
GRID = {"light": "rgb(230, 233, 237)", "dark": "rgb(43, 48, 56)"}  # page.css: --grid
AXES = {"title": {"text": "epoch"}}, {"title": {"text": "accuracy, %"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A page with a plain figure, one of two subplots, and one that says nothing of its layout."""
    names = ["a line whose name takes all the width that a phone has", "short", "third", HOSTILE]
    plain = go.Figure([go.Scatter(x=[1, 2, 3], y=[90, 91, 92 + i], name=name) for i, name in enumerate(names)])
    plain.update_layout(layout(*AXES, 400, 2))
    double = make_subplots(rows=1, cols=2, subplot_titles=["mnist", "digits"])
    for column in (1, 2):
        double.add_bar(x=["a", "b"], y=[1, 2 * column], name=f"bars {column}", row=1, col=column)
    double.update_layout(layout(*AXES, 360, 1), margin_t=40)
    bare = go.Figure([go.Scatter(x=[-1, 1], y=[-1, 1])])
    header = ["what", *(f"column {i}" for i in range(12)), "held"]
    grid = Grid(header, [["a row", *["1,234.5 (1,200 to 1,300)"] * 12, held] for held in ("yes", "no", "perhaps")],
                marks={"yes": "good", "no": "bad", "perhaps": "unsure"})  # fmt: skip
    sections = [
        Section("Lines", ["Text with `code`."], plain, "A caption."),
        Section("Bars", figure=double, grid=grid, note="A note."),
        Section("Bare", figure=bare),
    ]
    made = Document(HOSTILE, f"It holds: {HOSTILE}.", ["Made by `kdsearch`."], sections)
    return document.write(made, tmp_path, "page")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_figures_are_drawn_offline_in_the_schemes_colours_and_the_page_fits(
    browser: Browser, path: Path, width: int, scheme: str
):
    shown, trouble = opened(browser, path, width=width, scheme=scheme)
    assert trouble == []
    assert shown.title().startswith("</script><script>")
    assert shown.locator("img").count() == 0
    assert shown.locator("#figure-1 .scatterlayer .trace").count() == 4
    assert shown.locator("#figure-2 .barlayer .point").count() == 4
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    scroll = shown.locator(".scroll")
    assert scroll.evaluate("element => element.scrollWidth > element.clientWidth")
    lines = shown.evaluate(
        "[...document.querySelectorAll('#figure-2 .gridlayer path, #figure-3 .zerolinelayer path')]"
        ".map((line) => getComputedStyle(line).stroke)"
    )
    assert len(lines) > 4
    assert set(lines) == {GRID[scheme]}
    grounds = shown.locator("#figure-3 .main-svg").evaluate_all("all => all.map((svg) => svg.style.backgroundColor)")
    assert set(grounds) <= {"", "rgba(0, 0, 0, 0)"}
    for text in ("#figure-1 .xtitle", "#figure-2 .annotation-text", "#figure-2 .x2tick text"):
        assert (brightness(shown, text, "fill") > brightness(shown, "body", "backgroundColor")) == (scheme == "dark")


def brightness(shown: Page, selector: str, what: str) -> int:
    color = shown.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
    return sum(int(part) for part in color[4:-1].split(","))


@pytest.mark.parametrize("width", [1280, 390])
def test_a_legend_of_long_names_hides_neither_plot_nor_axis(browser: Browser, path: Path, width: int):
    shown, _ = opened(browser, path, width=width, scheme="light")
    title, legend = (shown.locator(f"#figure-1 {name}").bounding_box() for name in (".xtitle", ".legend"))
    assert title
    assert legend
    assert legend["y"] >= title["y"] + title["height"]


def test_marks_show_a_sign_besides_their_word_and_colour(browser: Browser, path: Path):
    shown, _ = opened(browser, path, width=1280, scheme="light")
    marks = shown.locator(".mark")
    assert marks.all_inner_texts() == ["yes", "no", "perhaps"]
    signs = marks.evaluate_all("marks => marks.map((mark) => getComputedStyle(mark, '::before').content)")
    assert len(set(signs)) == 3
    assert len(set(marks.evaluate_all("marks => marks.map((mark) => getComputedStyle(mark).color)"))) == 3


def test_print_puts_the_paper_colours_on_every_axis(browser: Browser, path: Path):
    shown, trouble = opened(browser, path, width=1280, scheme="dark")
    shown.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    strokes = "[...document.querySelectorAll('#figure-2 .gridlayer path')].map((line) => getComputedStyle(line).stroke)"
    shown.wait_for_function(f"{strokes}.every((stroke) => stroke === '{GRID['light']}')")
    assert trouble == []


def test_without_javascript_text_and_tables_remain(browser: Browser, path: Path):
    context = browser.new_context(java_script_enabled=False, offline=True)
    shown = context.new_page()
    shown.goto(path.as_uri())
    assert "needs JavaScript; the tables do not" in shown.locator("#figure-1").inner_text()
    assert "1,234.5 (1,200 to 1,300)" in shown.locator("main").inner_text()
    assert shown.locator("h1").inner_text() == HOSTILE
