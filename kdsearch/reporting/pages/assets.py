"""Parts of every page with figures: plotly.js (inlined or linked), a Content-Security-Policy, templates."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Literal, cast, get_args

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from kdsearch.errors import KdsearchError

Library = Literal["inline", "cdn"]
LARGE = 30_000  # characters: a longer figure is compressed
HEIGHT = 450  # pixels: Plotly's default


def checked(plotlyjs: str) -> Library:
    """Return the way to include plotly.js: "inline" in the page, compressed (2 MB, no network), or "cdn", a link.

    Raises:
        KdsearchError: `plotlyjs` is neither.
    """
    if plotlyjs not in get_args(Library):
        raise KdsearchError("--plotlyjs must be inline or cdn", got=plotlyjs, remedy="choose one of the two")
    return cast(Library, plotlyjs)


def templates(**filters: Callable[..., str]) -> jinja2.Environment:
    """Return the Jinja environment for pages with these filters more; templates lie in this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= filters
    return environment


def parts(drawn: Mapping[str, go.Figure | None], plotlyjs: str) -> dict[str, Any]:
    """Return what a template needs to show figures: their data, style, scripts and policy.

    Args:
        drawn: figures by the name of their place; None: no figure there.
        plotlyjs: see `checked`; a page without figures includes none.

    Raises:
        KdsearchError: `plotlyjs` is neither "inline" nor "cdn".
    """
    way = checked(plotlyjs)
    script = _asset("page.js")
    library = get_plotlyjs() if any(drawn.values()) else ""
    linked = bool(library) and way == "cdn"
    texts = {name: figure_json(figure) if figure else Markup("") for name, figure in drawn.items()}
    large = {name for name, text in texts.items() if len(text) > LARGE}
    return {
        "figures": {name: Markup(packed(text)) if name in large else text for name, text in texts.items()},
        "large": large,  # compressed, as plotly.js is
        "heights": {name: figure.layout.height or HEIGHT for name, figure in drawn.items() if figure},
        "css": Markup(_asset("page.css")),
        "script": Markup(script),
        "packed": packed(library) if library and not linked else "",
        "cdn": {"url": _cdn_url(), "integrity": f"sha256-{_digest(library)}"} if linked else None,
        "policy": _policy(script, library, linked),
    }


def figure_json(figure: go.Figure) -> Markup:
    """Return a figure's JSON for a script element; nothing in it can end that element or open a comment."""
    text = figure.to_json()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def packed(text: str) -> str:
    """Compress a script, a figure or a table to text that page.js unpacks."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _cdn_url() -> str:
    return f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"


def _digest(text: str) -> str:
    """Return a text's SHA-256 as policies and `integrity` spell it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _policy(script: str, library: str, linked: bool) -> str:
    """Return a Content-Security-Policy that allows only the page's own script and plotly.js, each by its hash."""
    sources = [f"'sha256-{_digest(script)}'"]
    if library:
        sources.append(_cdn_url() if linked else f"'sha256-{_digest(library)}'")
    # plotly.js sets inline styles, and saves a picture through data: and blob: addresses
    return f"default-src 'none'; script-src {' '.join(sources)}; style-src 'unsafe-inline'; img-src data: blob:"


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
