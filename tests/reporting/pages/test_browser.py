from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import plotly.graph_objects as go
import pytest
from axe_playwright_python.sync_playwright import Axe
from helpers.browsing import HOSTILE, opened
from optuna.trial import TrialState, create_trial
from playwright.sync_api import Browser, Page, sync_playwright
from plotly.subplots import make_subplots

from kdsearch.records import Attr, StudyAttr
from kdsearch.reporting.collect import StudyData, collect
from kdsearch.reporting.figures.style import layout
from kdsearch.reporting.measured import Measured
from kdsearch.reporting.pages import document, study_page, text
from kdsearch.reporting.pages.document import Document, Grid, Section

pytestmark = [pytest.mark.browser, pytest.mark.slow]
A4, MARGIN = 794, 53  # pixels of 1/96 inch: the width of a page, and 14 mm
GRID = {"light": "rgb(230, 233, 237)", "dark": "rgb(43, 48, 56)"}  # page.css: --grid
AXES = {"title": {"text": "epoch"}}, {"title": {"text": "accuracy, %"}}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        path = os.environ.get("KDSEARCH_CHROMIUM", "/usr/bin/chromium")
        chromium = driver.chromium.launch(executable_path=path, headless=True, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Callable[..., tuple[Page, list[str]]]:
    """Opens the report of a study in a browser: see `helpers.browsing.opened`."""
    return lambda data, **how: opened(browser, study_page.write(data, tmp_path / "r.html"), **how)


def brightness(shown: Page, selector: str, what: str) -> int:
    color = shown.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}")
    return sum(int(part) for part in color[4:-1].split(","))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_is_drawn_offline_and_the_page_fits(data: StudyData, width: int, scheme: str, show):
    shown, trouble = show(data, width=width, scheme=scheme)
    assert trouble == []
    assert shown.locator("#slices .scatterlayer .point").count() == 5  # one has no width
    # front: 3 + 2 dominated + 1 pruned + 9 published + 3 measured + the teacher
    assert shown.locator("#front .scatterlayer .point").count() == 19
    assert shown.locator("#curves .scatterlayer .point").count() == 12
    assert shown.locator("#hypervolume .scatterlayer .point").count() == 6
    labels = shown.locator("#front .scatterlayer text").all_text_contents()
    assert sorted(labels) == sorted([f"m{i}" for i in range(1, 10)] + ["m1", "m2", "m9", "teacher"])
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    ink, paper = brightness(shown, "#front .xtitle", "fill"), brightness(shown, "body", "backgroundColor")
    assert (ink > paper) == (scheme == "dark")


def test_the_switch_moves_the_points(data: StudyData, show):
    shown, trouble = show(data)
    title = shown.locator("#front .ytitle")
    assert title.text_content() == "test accuracy, %"
    shown.locator("#front .updatemenu-button").nth(1).click()
    shown.wait_for_function("document.querySelector('#front .ytitle').textContent === 'validation accuracy, %'")
    assert shown.locator("#front .scatterlayer .point").count() == 10  # the nine published points are gone
    assert trouble == []


def test_a_point_selects_its_row_and_its_curve(data: StudyData, show):
    shown, trouble = show(data)
    before = shown.locator("#curves .scatterlayer .trace").count()
    shown.evaluate("document.querySelector('#front').emit('plotly_click', {points: [{customdata: 3}]})")
    assert shown.locator("tr.selected").get_attribute("id") == "trial-3"
    assert shown.locator("#curves .scatterlayer .trace").count() == before + 1
    assert shown.evaluate("location.hash") == "#trial-3"
    numbers = shown.evaluate(
        "document.querySelector('#front').data.flatMap((t) => t.customdata ?? []).filter(Number.isInteger)"
    )
    assert set(numbers) == {0, 1, 2, 3, 4, 5}
    assert trouble == []


def test_a_link_to_a_trial_shows_it(browser: Browser, data: StudyData, tmp_path: Path):
    path = study_page.write(data, tmp_path / "r.html")
    context = browser.new_context(offline=True)
    shown = context.new_page()
    shown.goto(f"{path.as_uri()}#trial-5")
    shown.locator("tr.selected").wait_for()
    assert shown.locator("tr.selected").get_attribute("id") == "trial-5"


def test_the_table_is_sorted_filtered_and_saved(data: StudyData, show):
    shown, trouble = show(data)
    rows = shown.locator("table.all tbody tr:visible")

    def numbers() -> list[str]:
        return [text.split()[0] for text in rows.all_inner_texts()]

    button = shown.locator("table.all thead button").filter(has_text="Ratio")
    button.click()
    assert numbers()[0] == "0"  # at ratio 300
    button.click()
    assert (numbers()[0], numbers()[-1]) == ("4", "6")  # at ratio 20; the failed one has none
    assert shown.locator("table.all th[aria-sort]").get_attribute("aria-sort") == "ascending"
    shown.locator(".tools select").select_option("pruned")
    assert numbers() == ["5"]
    shown.locator(".tools select").select_option("")
    shown.locator(".tools input").fill("width 300, m2")
    assert numbers() == ["1"]
    assert shown.locator(".tools output").inner_text() == "1 of 7 trials"
    with shown.expect_download() as saved:
        shown.locator(".save").click()
    assert saved.value.suggested_filename == "mnist.csv"
    assert Path(saved.value.path()).read_text(encoding="utf-8") == text.as_csv(data)
    assert trouble == [] or all(line.startswith("blob:") for line in trouble)


def test_the_runtimes_are_drawn_on_a_phone_with_a_line_and_a_number_a_student(complete: optuna.Study, gather, show):
    shown, trouble = show(gather(complete), width=390)
    assert shown.locator("#runtimes .scatterlayer .point").count() == 3 * 3 + 2
    assert sorted(shown.locator("#runtimes .scatterlayer text").all_text_contents()) == ["0", "3", "4"]
    ticks = shown.locator("#runtimes .xtick")
    assert ticks.all_text_contents() == ["the search", "torch", "ONNX Runtime", "Raspberry Pi 5"]
    assert shown.evaluate("document.documentElement.scrollWidth") == 390
    assert trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(complete: optuna.Study, scheme: str, gather, show):
    shown, _ = show(gather(complete), scheme=scheme)
    found = Axe().run(shown).response["violations"]
    serious = [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found
               if each["impact"] in ("serious", "critical")]  # fmt: skip
    assert serious == []


def test_the_print_view_fits_a4(complete: optuna.Study, gather, show):
    shown, _ = show(gather(complete), width=A4 - 2 * MARGIN)
    shown.emulate_media(media="print")
    assert shown.evaluate("document.documentElement.scrollWidth") <= A4 - 2 * MARGIN
    assert shown.pdf(format="A4").startswith(b"%PDF")


def hostile_study(make_trial, make_study) -> optuna.Study:
    """One in which every text that a storage can hold is hostile."""
    reason = {"step": 1, "at": HOSTILE, "forecast": 0.9, "trials": [HOSTILE], "reason": HOSTILE}
    curve = {HOSTILE: [0.5, 1.0], "1": [0.9, 50.0]}
    trials = [
        make_trial([0.9, 0.95], 50.0, anchor=HOSTILE, config={HOSTILE: HOSTILE, "epochs": HOSTILE}),
        make_trial([0.9], 50.0, state=TrialState.PRUNED, pruned_by=reason, config={"width": [HOSTILE]}),
        make_trial([0.9], 60.0, stopped_by={"step": HOSTILE, "reason": HOSTILE}, stopped_at=HOSTILE),
        make_trial([0.9], 70.0, timing={"kind": HOSTILE}, timing_key=HOSTILE, parameters=HOSTILE, seed=HOSTILE),
        create_trial(
            state=TrialState.FAIL, user_attrs={Attr.FAIL_REASON: HOSTILE, Attr.CURVE: curve, HOSTILE: HOSTILE}
        ),
    ]
    study = make_study(trials, name=HOSTILE)
    file = study.user_attrs[StudyAttr.STUDY_FILE]
    file["data"]["name"] = f"folder:/tmp/{HOSTILE}"
    file["anchors"] = {HOSTILE: next(iter(file["anchors"].values()))}
    study.set_user_attr(StudyAttr.STUDY_FILE, file)
    data = {"fingerprint": HOSTILE, "classes": [HOSTILE, "b"], "name": HOSTILE}
    study.set_user_attr(StudyAttr.DEFINITION, {"data": data, "cost": HOSTILE, HOSTILE: HOSTILE})
    study.set_user_attr(StudyAttr.ENVIRONMENT, {"torch": HOSTILE, HOSTILE: {HOSTILE: [HOSTILE]}, "data_dir": HOSTILE})
    study.set_user_attr(StudyAttr.TEACHER, study.user_attrs[StudyAttr.TEACHER] | {"family": HOSTILE})
    study.set_user_attr(StudyAttr.COMMAND, f"kdsearch optimize --name {HOSTILE}")
    for trial, source in ((0, "here"), (2, "here"), (3, "device"), (3, "file")):
        texts = dict.fromkeys(("runtime", "version", "device", "provider", "date"), HOSTILE)
        each = Measured(trial=trial, source=source, threads=1, batch=1, ratio=9, low=8, high=10, teacher_seconds=1,
                        student_seconds=1, **texts)  # fmt: skip
        study.set_user_attr(f"{each.key}{HOSTILE}", each.stored())
    return study


def test_a_hostile_study_is_shown_as_text(make_trial, make_study, show):
    study = hostile_study(make_trial, make_study)
    shown, trouble = show(collect(study, storage_url=f"sqlite:///{HOSTILE}.db"))
    shown.on("dialog", lambda dialog: trouble.append(f"dialog: {dialog.message}"))
    for plot in shown.locator(".nsewdrag").all():
        plot.hover()
    assert shown.title() == f"Study {HOSTILE} on folder:/tmp/{HOSTILE} · kdsearch"
    assert shown.locator("h1").text_content() == f"Study {HOSTILE} on folder:/tmp/{HOSTILE}"
    assert shown.locator("img, svg[onload], [onerror], [onload]").count() == 0
    # a figure's JSON ends where it should: no hostile text closed the element that it lies in
    for data in shown.locator("script[type='application/json']").all():
        json.loads(data.text_content())
    everything = shown.locator("body").inner_text()
    assert everything.count("<script>document.title='owned'</script>") > 5
    assert trouble == []


def test_without_javascript_the_tables_hold_the_front(browser: Browser, data: StudyData, tmp_path: Path):
    context = browser.new_context(java_script_enabled=False, offline=True)
    shown = context.new_page()
    shown.goto(study_page.write(data, tmp_path / "r.html").as_uri())
    assert "needs JavaScript" in shown.locator("#front").inner_text()
    assert "kdsearch train --trial 4" in shown.locator("main").inner_text()


def test_a_study_without_trials_opens(gather, show):
    shown, trouble = show(gather([], bare=True))
    assert "no trials yet" in shown.locator(".verdict").inner_text()
    assert trouble == []


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
    for name in ("#figure-1 .xtitle", "#figure-2 .annotation-text", "#figure-2 .x2tick text"):
        assert (brightness(shown, name, "fill") > brightness(shown, "body", "backgroundColor")) == (scheme == "dark")


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
