"""Insert text from a study into Markdown literally, so that it is read neither as markup nor as HTML."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from kdsearch.errors import shown

MARKUP = re.compile(
    r"([\\`*\[\]|~$]"
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasises nothing within a word
    r"|<(?=[A-Za-z/!?])|&(?=#?\w+;)|:(?=//|[\w+-]+:)|(?<=www)\.|@(?=\w))",  # tags, entities, emoji, links
    re.IGNORECASE,
)
# begins a list, a heading or a quotation at the start of a line only
BEGINNING = re.compile(r"^(\d*)([-+](?![\d.])|[#=>]|(?<=\d)[.)](?!\d))")


def plain(text: object, *, begins: bool = True) -> str:
    """Return text for a paragraph or a cell, with every character escaped that Markdown or HTML might interpret.

    Args:
        text: is put into one line.
        begins: whether it begins the paragraph or the cell.
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
    """Return a table of figures whose cells are Markdown already.

    Args:
        columns: their titles; all but the first and `words` are aligned to the right.
        rows: as many cells each.
        words: titles of columns that hold words.
    """
    left = {columns[0], *words}
    lines = [columns, ["---" if column in left else "---:" for column in columns], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return a list of named facts without those that are missing or empty."""
    return "\n".join(
        f"- {plain(name.replace('_', ' '))}: {plain(value)}" for name, value in pairs if value not in (None, "", "–")
    )
