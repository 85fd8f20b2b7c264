from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path

import plotly.graph_objects as go
import pytest

from kdsearch.errors import KdsearchError
from kdsearch.reporting.figures.style import layout
from kdsearch.reporting.pages import assets, document
from kdsearch.reporting.pages.document import Document, Grid, Section

HOSTILE = "<script>alert(1)</script>"


def figure(title: str = "epoch") -> go.Figure:
    axes = {"title": {"text": title}}, {"title": {"text": "accuracy, %"}}
    return go.Figure([go.Scatter(x=[1, 2], y=[90, 91], name=title)], layout(*axes, 300))


@pytest.fixture
def whole() -> Document:
    grid = Grid(
        header=("what", "figure", ""),
        rows=[("accuracy | test", "97.24 %", "met"), ("two\nlines `a|b`", "1.86x (1.26 to 2.27)", "not met"),
              ("third", "–", "unknown")],
        marks={"met": "good", "not met": "bad", "unknown": "unsure"},
    )  # fmt: skip
    return Document(
        title="What the slides say",
        verdict="2 of 3 hold, 97 % of them in `digits`.",
        facts=["Made by `kdsearch slides`.", "Seeds 0 to 4."],
        sections=[
            Section("Curves", ["First.", "Second with `code`."], figure(), "A line a trial."),
            Section("Bars", grid=grid, note="Smaller is better.", anchor="bars"),
        ],
    )


def cells(source: str) -> list[str]:
    return re.findall(r"<td.*?</td>", source)


def test_the_page_holds_everything_in_its_order(whole: Document):
    source = document.html(whole, "cdn")
    body = source[source.index("<body>") :]
    pieces = [
        "<h1>What the slides say</h1>",
        '<p class="verdict">2 of 3 hold, 97\u00a0% of them in <code>digits</code>.</p>',
        '<h2 id="section-1">Curves</h2>', "<p>First.</p>", "<p>Second with <code>code</code>.</p>",
        'id="figure-1" data-figure="figure-1-data" style="--height: 300px"', "<figcaption>A line a trial.</figcaption>",
        '<h2 id="bars">Bars</h2>', '<p class="note">Smaller is better.</p>', '<div class="scroll"', "<table>",
        '<h2 id="facts">Where this comes from</h2>', "<li>Made by <code>kdsearch slides</code>.</li>", "Seeds 0 to 4.",
    ]  # fmt: skip
    places = [body.index(piece) for piece in pieces]
    assert places == sorted(places)
    assert "<title>What the slides say · kdsearch</title>" in source


def test_an_empty_document_is_a_page_with_a_large_title_and_no_plotly():
    source = document.html(Document("Nothing"))
    assert '<h1 class="verdict">Nothing</h1>' in source
    assert len(source) < 20_000
    assert document.markdown(Document("Nothing")) == "# Nothing\n"


def test_marks_are_a_word_in_a_class(whole: Document):
    marked = [cell for cell in cells(document.html(whole, "cdn")) if "mark" in cell]
    assert marked == [
        f'<td><span class="mark {mark}">{text}</span></td>'
        for mark, text in (("good", "met"), ("bad", "not met"), ("unsure", "unknown"))
    ]


@pytest.mark.parametrize("mark", ["good", "bad", "unsure"])
def test_marks_can_be_read_on_both_grounds_and_told_apart_without_colour(mark):
    css = files("kdsearch.reporting.pages").joinpath("page.css").read_text(encoding="utf-8")
    schemes = [dict(re.findall(r"--([\w-]+): (#\w{6})", line)) for line in re.findall(r":root {.*?}", css)]
    assert len(schemes) == 2
    for scheme in schemes:
        for ground in ("bg", "card", "best"):
            assert contrast(scheme[mark], scheme[ground]) >= 4.5
    signs = dict(re.findall(r'\.(\w+)::before { content: "(.) "', css))
    assert len(set(signs.values())) == 3
    assert mark in signs


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG counts it."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (["97.24 %", "–", ""], "n"), (["+0.0010", "-3", "−4", "1.6e-07"], "n"), (["375 [248, 472]", ".5"], "n"),
        (["1 min 36 s", "954 kB", "1,024"], "n"), (["15 / 1 / 14", "1.86x (1.26 to 2.27)"], "n"),
        (["m1", "m2"], ""), (["3", "three"], ""), (["1.5x fewer"], ""), (["–", ""], ""), ([], ""),
        (["short", "a cell of more than forty characters, of words"], "wrap"),
    ],
)  # fmt: skip
def test_a_columns_class_follows_from_its_cells(column, kind):
    assert document.columns(Grid(["figure"], [[cell] for cell in column])) == [kind]


def test_numbers_stand_to_the_right_under_their_header(whole: Document):
    source = document.html(whole, "cdn")
    assert '<th scope="col" class="n">figure</th>' in source
    assert '<td class="n">97.24 %</td>' in source
    assert '<th scope="col">what</th>' in source


def test_hostile_text_stays_text():
    grid = Grid([HOSTILE], [[HOSTILE], [f"`{HOSTILE}`"]], marks={HOSTILE: "bad"})
    section = Section(HOSTILE, [HOSTILE], figure(HOSTILE), HOSTILE, grid, HOSTILE, f'"{HOSTILE}')
    made = Document(HOSTILE, HOSTILE, [HOSTILE], [section])
    source, marked = document.html(made, "cdn"), document.markdown(made)
    assert HOSTILE not in source
    assert source.count("<script") == 3  # the figure's data, plotly.js and the page's own
    assert "<code>&lt;script&gt;alert(1)&lt;/script&gt;</code>" in source
    assert "<title>&lt;script&gt;" in source
    data = source.split('id="figure-1-data">')[1].split("</script>")[0]
    assert "<" not in data
    assert json.loads(data)["data"][0]["name"] == HOSTILE
    assert f"| `{HOSTILE}` |" in marked  # code opens no HTML in Markdown either
    assert re.findall("<[^>]*>", re.sub(r"`.*?`|\\<", "", marked)) == [
        '<a id="&#34;&lt;script&gt;alert(1)&lt;/script&gt;">',
        "</a>",
    ]


def test_a_comparison_in_markdown_stays_as_it_is():
    assert document.markdown(Document("t", "p < 0.05, a <b>, x<3")).endswith("**p < 0.05, a \\<b>, x<3**\n")


def test_a_backtick_alone_is_a_backtick():
    source = document.html(Document("a ` b", sections=[Section("c `d` e ` f")]))
    assert '<h1 class="verdict">a ` b</h1>' in source
    assert "c <code>d</code> e ` f</h2>" in source


def test_markdown_says_the_same(whole: Document):
    assert document.markdown(whole, "slides.html").split("\n\n") == [
        "# What the slides say",
        "**2 of 3 hold, 97 % of them in `digits`.**",
        "## Curves",
        "First.",
        "Second with `code`.",
        "(Figure: see [slides.html](slides.html).) A line a trial.",
        '<a id="bars"></a>',
        "## Bars",
        "Smaller is better.",
        "| what | figure |  |\n|---|---|---|\n"
        "| accuracy \\| test | 97.24 % | met |\n"
        "| two lines `a\\|b` | 1.86x (1.26 to 2.27) | not met |\n"
        "| third | – | unknown |",
        "## Where this comes from",
        "- Made by `kdsearch slides`.\n- Seeds 0 to 4.\n",
    ]
    assert "(Figure: see the HTML page.)" in document.markdown(whole)


@pytest.mark.parametrize("plotlyjs", ["inline", "cdn"])
def test_the_policy_runs_the_pages_script_and_plotly_alone(whole: Document, plotlyjs: assets.Library):
    source = document.html(whole, plotlyjs)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', source)
    assert policy
    sources = re.search(r"script-src (.*?);", policy[1].replace("&#39;", "'"))
    assert sources
    own = source.rsplit("<script>", 1)[1].split("</script>")[0]
    hashed = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    first, second = sources[1].split()
    assert first == f"'sha256-{hashed}'"
    assert second.startswith("'sha256-" if plotlyjs == "inline" else "https://cdn.plot.ly/plotly-")
    assert "default-src 'none'" in policy[1].replace("&#39;", "'")
    assert ("integrity=" in source) == (plotlyjs == "cdn")
    assert (len(source) > 1_000_000) == (plotlyjs == "inline")


def test_a_row_of_another_width_and_an_unknown_mark_are_refused():
    with pytest.raises(ValueError, match="as wide as the header, 2 cells"):
        Grid(["a", "b"], [["1", "2"], ["1"]])
    with pytest.raises(ValueError, match="one of good, bad, unsure"):
        Grid(["a"], [], marks={"met": "fine"})  # type: ignore[dict-item]


def test_an_unknown_way_to_get_plotly_is_refused_and_nothing_written(whole: Document, tmp_path: Path):
    with pytest.raises(KdsearchError, match="inline or cdn"):
        document.write(whole, tmp_path, "slides", plotlyjs="none")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_write_makes_the_folder_and_leaves_nothing_beside(whole: Document, tmp_path: Path):
    path = document.write(whole, tmp_path / "reports", "slides", plotlyjs="cdn")
    assert path == tmp_path / "reports" / "slides.html"
    assert path.read_text(encoding="utf-8") == document.html(whole, "cdn")
    assert path.with_suffix(".md").read_text(encoding="utf-8") == document.markdown(whole, "slides.html")
    assert sorted(file.name for file in path.parent.iterdir()) == ["slides.html", "slides.md"]


def test_a_page_that_cannot_be_written_leaves_the_old_one(whole: Document, tmp_path: Path, no_room):
    (tmp_path / "slides.html").write_text("before")
    with no_room(), pytest.raises(KdsearchError, match=r"must be writable: File too large.*slides\.html"):
        document.write(whole, tmp_path, "slides", plotlyjs="cdn")
    assert (tmp_path / "slides.html").read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["slides.html"]
