"""Mask passwords in everything printed, logged or written, and describe a failing storage."""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_plus

if TYPE_CHECKING:
    from sqlalchemy import URL

JOURNAL = "journal:"
SECRET = re.compile(r"pass(?!file)|pwd|secret|token|credential|odbc_connect", re.IGNORECASE)  # keys of a URL's query
ANY_PASSWORD = re.compile(r"(://[^:/@\s]*:)\S*(@)")


def masked(url: str) -> str:
    """Return the URL with its password replaced by `***`, to be printed, logged or written."""
    if url.startswith(JOURNAL):
        return JOURNAL + ANY_PASSWORD.sub(r"\1***\2", url.removeprefix(JOURNAL))  # a path may look like a URL
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "***"  # not a URL: the password may be anywhere
    if is_torn(parsed):
        return ANY_PASSWORD.sub(r"\1***\2", url)
    secret = {key: "***" for key in parsed.query if SECRET.search(key)}
    return parsed.update_query_dict(secret).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")


def is_torn(parsed: URL) -> bool:
    """Return whether an unencoded @ in the password cut it short, so that its rest became part of host or database."""
    return parsed.password is not None and "@" in f"{parsed.host or ''}{parsed.database or ''}"


def hidden(text: str, url: str | None = None) -> str:
    """Return a text without the password of a URL, in any encoding, and without those of other URLs in it.

    Args:
        text: an error's message, or a word of a command line.
        url: of the storage; None if unknown.
    """
    if url is not None and url.strip():
        text = text.replace(url, masked(url))
        for password in sorted(_passwords(url), key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(password)}(?!\w)", "***", text)
    return ANY_PASSWORD.sub(r"\1***\2", text)


def _passwords(url: str) -> set[str]:
    """Return the secrets of a URL, encoded and decoded."""
    _, _, rest = url.partition("://")
    login, _, _ = rest.rpartition("@")
    found = {login.partition(":")[2]}
    found |= {value for key, value in re.findall(r"([^?&=]+)=([^&]*)", url) if SECRET.search(key)}
    return {form for each in found for form in (each, unquote(each), unquote_plus(each)) if form}


def trouble(error: BaseException) -> str | None:
    """Return a storage's error as one line without its password; None if it is no storage's error."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    inner = error
    while isinstance(inner, AssertionError | UnboundLocalError) and inner.__context__ is not None:
        inner = inner.__context__  # Optuna raises again if it cannot store that a trial failed
    if isinstance(inner, StorageInternalError) and inner.__cause__ is not None:
        inner = inner.__cause__  # Optuna's own message is the same for every cause
    details = getattr(inner, "details", None)  # grpc.RpcError, without importing grpc
    if callable(details) and callable(getattr(inner, "code", None)):
        return hidden(first_line(str(details() or type(inner).__name__)))
    if not isinstance(inner, SQLAlchemyError | StorageInternalError | sqlite3.Error):
        return None
    return hidden(first_line(str(getattr(inner, "orig", None) or inner)))


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
