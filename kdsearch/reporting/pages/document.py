"""A page of sections, each with text, a figure and a table: as HTML in the report's style, and as Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape as html_words
from pathlib import Path
from typing import Literal, get_args

import plotly.graph_objects as go
from markupsafe import Markup, escape

from kdsearch.errors import shown
from kdsearch.reporting.pages.assets import Library, parts, templates
from kdsearch.system.files import write_text

Mark = Literal["good", "bad", "unsure"]
FACTS = "Where this comes from"
VERSIONS = ("kdsearch", "torch", "torchvision", "optuna", "python", "platform", "device_model", "cores")
LONG = 40  # characters: a column with a longer cell may wrap
MANY = 8  # columns: a wider table is set smaller
# starts with a number and has no word longer than a unit ("1 min 36 s", "1.86x (1.26 to 2.27)", "15 / 1 / 14")
NUMERIC = re.compile(r"[^\w.]*\.?\d(?!.*[^\W\d_]{4})", re.DOTALL)
NOTHING = ("", "-", "–", "—")
CODE = re.compile(r"`([^`]+)`")
ELEMENT = re.compile("<code>(.*?)</code>", re.DOTALL)
TAG = re.compile("<[^>]*>")
MARKUP = re.compile(
    r"([\\`*\[\]|~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasises nothing within a word
    r"|<(?=[A-Za-z/!?])|&(?=#?\w+;)|:(?=//|[\w+-]+:)|(?<=www)\.|@(?=\w))",  # tags, entities, emoji, links
    re.IGNORECASE,
)
# begins a list, a heading or a quotation at the start of a line only
BEGINNING = re.compile(r"^(\d*)([-+](?![\d.])|[#=>]|(?<=\d)[.)](?!\d))")


@dataclass(frozen=True)
class Grid:
    """A table.

    Raises:
        ValueError: a row's width differs from the header's, or a mark is unknown.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]  # as wide as the header
    marks: Mapping[str, Mark] = field(default_factory=dict)  # by cell text: HTML colours it and puts a sign before it
    groups: Sequence[tuple[str, int]] = ()  # titles above the header, with their numbers of columns; none, or for all
    below: Sequence[str] = ()  # a command below each row, in HTML alone; none, or one a row
    titled: bool = False  # whether the first cell of a row is its title

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row must be as wide as the header, {len(self.header)} cells (got {list(row)})")
        for mark in self.marks.values():
            if mark not in get_args(Mark):
                raise ValueError(f"a mark must be one of {', '.join(get_args(Mark))} (got {mark})")


@dataclass(frozen=True)
class Fold:
    """A part that HTML shows when its title is clicked."""

    title: str
    grid: Grid | None = None
    facts: Sequence[tuple[str, str]] = ()
    code: str = ""  # preformatted text, in HTML alone


@dataclass(frozen=True)
class Section:
    """A part of a document: title, text, figure, note, table, facts, folds; empty parts are left out."""

    title: str  # "": none
    text: Sequence[str] = ()  # paragraphs
    figure: go.Figure | None = None  # made with `style.layout`, so that it fits pages and phones
    caption: str = ""  # below the figure
    grid: Grid | None = None
    note: str = ""  # small text above the table
    anchor: str = ""  # its name in addresses (`page.html#anchor`); "": "section-1" and so on in HTML, none in Markdown
    plot: str = ""  # name of the figure's element; "" gives "figure-1" and so on
    facts: Sequence[tuple[str, str]] = ()  # shown literally: a table of two columns, a list in Markdown
    folds: Sequence[Fold] = ()
    html: Markup | None = None  # replaces the table in HTML


@dataclass(frozen=True)
class Document:
    """A page. All text is shown literally, except for `code` between backticks and the elements of a `Markup`."""

    title: str
    verdict: str = ""  # one sentence at the top, in large letters
    facts: Sequence[str] = ()  # command, seeds, machine and the like: a list at the end
    sections: Sequence[Section] = ()
    lead: Sequence[str] = ()  # paragraphs below the verdict


def html(document: Document, plotlyjs: Library = "inline", *, refresh: int | None = None) -> str:
    """Render the document as one HTML page.

    Args:
        plotlyjs: see `assets.checked`.
        refresh: seconds after which a browser reloads the page; None: never.

    Raises:
        KdsearchError: `plotlyjs` is neither.
    """
    template = templates(marked=_marked, plain=_words).get_template("document.html.j2")
    drawn = {section.plot or f"figure-{i}": section.figure for i, section in enumerate(document.sections, 1)}
    return template.render(
        document=document, facts_title=FACTS, columns=columns, many=MANY, refresh=refresh, **parts(drawn, plotlyjs)
    )


def markdown(document: Document, page: str = "") -> str:
    """Render the document as Markdown: its text and tables, with a note in place of each figure.

    The notes link to `page`, the HTML file beside this one that shows the figures, if there is one.
    """

    def blocks() -> Iterator[str]:
        yield f"# {_line(document.title)}"
        if document.verdict:
            yield f"**{_line(document.verdict)}**"
        yield from map(_line, document.lead)
        for section in document.sections:
            yield from _section_blocks(section, page)
        if document.facts:
            yield f"## {FACTS}"
            yield "\n".join(f"- {_line(fact)}" for fact in document.facts)

    return "\n\n".join(blocks()) + "\n"


def versions(environment: Mapping[str, object], keys: Sequence[str] = VERSIONS) -> str:
    """Return one line of `machine.environment`: machine and versions behind a figure; ? for what is missing."""
    return ", ".join(f"{key} {environment.get(key, '?')}" for key in keys) + "."


def write(
    document: Document, folder: Path, name: str, *, plotlyjs: Library = "inline", result: object | None = None
) -> Path:
    """Write NAME.html, whose path is returned, NAME.md, and NAME.json where a result is given, each atomically.

    Args:
        folder: created where it is missing.
        name: of the files, without an ending.
        plotlyjs: see `html`.
        result: plain data for the JSON; None: no JSON is written.

    Raises:
        KdsearchError: a file cannot be written, or `plotlyjs` is neither.
    """
    page = folder / f"{name}.html"
    texts = {page: html(document, plotlyjs), folder / f"{name}.md": markdown(document, page.name)}
    if result is not None:
        texts[folder / f"{name}.json"] = json.dumps(result, indent=1, allow_nan=False) + "\n"
    for path, text in texts.items():
        write_text(path, text)
    return page


def columns(grid: Grid) -> list[str]:
    """Return the CSS class of each column: "n" for numbers, "wrap" for long text, "" for the rest."""
    return [_column([row[i] for row in grid.rows]) for i in range(len(grid.header))]


def _column(cells: Sequence[str]) -> str:
    told = [words for cell in cells if (words := _words(cell)) not in NOTHING]
    if told and all(map(NUMERIC.match, told)):
        return "n"
    return "wrap" if any(len(cell) > LONG for cell in told) else ""


def _words(text: str) -> str:
    """Return text without the signs and elements that mark it up."""
    return html_words(TAG.sub("", text)) if isinstance(text, Markup) else text.replace("`", "")


def _marked(text: str) -> Markup:
    """Escape text for HTML and set what is between backticks as code; a `Markup` stays as it is."""
    if isinstance(text, Markup):
        return text
    pieces = CODE.split(text)  # text and code by turns
    return Markup("").join(
        Markup("<code>{}</code>").format(piece) if i % 2 else escape(piece) for i, piece in enumerate(pieces)
    )


def _section_blocks(section: Section, page: str) -> Iterator[str]:
    blocks = [*_parts(section, page)]
    if section.html and not blocks:
        return  # a part of the HTML page alone
    if section.anchor:
        yield f'<a id="{escape(section.anchor)}"></a>'
    if section.title:
        yield f"## {_line(section.title)}"
    yield from blocks


def _parts(section: Section, page: str) -> Iterator[str]:
    yield from map(_line, section.text)
    if section.figure is not None:
        place = f"[{page}]({page})" if page else "the HTML page"
        yield f"(Figure: see {place}.)" + (f" {_line(section.caption)}" if section.caption else "")
    if section.note:
        yield _line(section.note)
    if section.grid is not None:
        yield _grid(section.grid)
    if section.facts:
        yield facts(section.facts)
    for fold in section.folds:
        if fold.grid is not None or fold.facts:
            yield f"{_line(fold.title)}:"
            yield facts(fold.facts) if fold.grid is None else _grid(fold.grid)


def _grid(grid: Grid) -> str:
    above = [title for title, width in grid.groups for _ in range(width)] or [""] * len(grid.header)
    header = [f"{group}: {name}" if group else name for group, name in zip(above, grid.header, strict=True)]
    rows = [[re.sub(r"(?<!\\)\|", r"\\|", _line(cell)) for cell in row] for row in (header, *grid.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def _line(text: str) -> str:
    """Return text for Markdown in one line, with nothing in it that is read as markup but its code."""
    if isinstance(text, Markup):
        pieces = [html_words(TAG.sub("", piece)) for piece in ELEMENT.split(text)]
    else:
        pieces = CODE.split(text)
    return "".join(code(piece) if i % 2 else _piece(piece, begins=i == 0) for i, piece in enumerate(pieces)).strip()


def _piece(text: str, *, begins: bool) -> str:
    before, after = " " * text[:1].isspace(), " " * text[-1:].isspace()
    return f"{before}{escaped(text, begins=begins)}{after}" if text.strip() else before


def escaped(text: object, *, begins: bool = True) -> str:
    """Return text as one line of Markdown that is read neither as markup nor as HTML.

    `begins`: whether it begins a paragraph or a cell.
    """
    line = MARKUP.sub(r"\\\1", shown(" ".join(str(text).split())))
    return BEGINNING.sub(r"\1\\\2", line) if begins else line


def code(text: object) -> str:
    """Return text as one line of inline code."""
    line = shown(" ".join(str(text).split())) or " "
    ticks = "`" * (_longest(line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}"


def block(text: object) -> str:
    """Return text as a code block of one line, such as a command to copy."""
    line = shown(str(text))
    ticks = "`" * max(3, _longest(line) + 1)
    return f"{ticks}sh\n{line}\n{ticks}"


def _longest(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: Collection[str] = ()) -> str:
    """Return a table whose cells are Markdown already; the first column and those of words are aligned to the left."""
    left = {columns[0], *words}
    lines = [columns, ["---" if column in left else "---:" for column in columns], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return a list of named facts without those that are missing or empty."""
    known = [(name.replace("_", " "), value) for name, value in pairs if value not in (None, "", "–")]
    return "\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in known)
