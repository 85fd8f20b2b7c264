"""Text from a study inside Markdown: shown as it is, taken neither for markup nor for HTML."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from kdsearch.errors import shown

MARKUP = re.compile(r"([\\`*_{}\[\]<>|~&$:@]|\.(?!\d))")  # a dot may begin a list or a link, but for 0.5
BEGINNING = re.compile(r"^(\d*)([-+#=)])")  # of a list or a heading; nothing elsewhere


def plain(text: object) -> str:
    """Any text as words of a paragraph or a cell: every sign that Markdown or HTML might read there is escaped."""
    return BEGINNING.sub(r"\1\\\2", MARKUP.sub(r"\\\1", shown(" ".join(str(text).split()))))


def code(text: object) -> str:
    """Any text as one line of code in a paragraph."""
    line = shown(" ".join(str(text).split())) or " "
    ticks = "`" * (_longest(line) + 1)
    return f"{ticks} {line} {ticks}" if "`" in line else f"{ticks}{line}{ticks}"


def block(text: object) -> str:
    """Any text as a block of code of one line, such as a command to copy."""
    line = shown(str(text))
    ticks = "`" * max(3, _longest(line) + 1)
    return f"{ticks}sh\n{line}\n{ticks}"


def _longest(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: Collection[str] = ()) -> str:
    """A table of figures; its cells are Markdown already.

    Args:
        columns: their titles; all but the first and `words` are aligned to the right.
        rows: as many cells each.
        words: titles of columns that hold words.
    """
    left = {columns[0], *words}
    lines = [columns, ["---" if column in left else "---:" for column in columns], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """A list of named facts; what is missing or empty is left out."""
    return "\n".join(
        f"- {plain(name.replace('_', ' '))}: {plain(value)}" for name, value in pairs if value not in (None, "", "–")
    )
