"""Every error that a user can cause, as one line that names the rule, the value and the remedy."""

from __future__ import annotations

import re
import sys

# control characters, characters that change the direction of text, and surrogates, which no file can hold
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """Return a text as one line for a terminal, control characters escaped: a name in a storage may hold any."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class KdsearchError(Exception):
    """Base of all errors that a user can cause; the command line prints it and exits with code 1.

    Args:
        rule: what must hold ("a data set must be one of digits, mnist, ...").
        got: the value that broke the rule, left out of the line where there is none.
        remedy: what to do about it.
    """

    def __init__(self, rule: str, *, got: object = None, remedy: str = "") -> None:
        self.rule, self.got, self.remedy = rule, got, remedy
        line = rule if got is None else f"{rule} (got {got})"
        if remedy:
            line = f"{line}; {remedy}"
        super().__init__(shown(" ".join(line.split())))


class StudyFileError(KdsearchError):
    """A study file that cannot be read or breaks a rule."""


class DataError(KdsearchError):
    """A data set that is unknown, missing or broken."""


class DeviceError(KdsearchError):
    """A device that this machine does not have."""


class StorageError(KdsearchError):
    """A storage that cannot be reached, or a study or trial that it does not hold."""


class DefinitionError(KdsearchError):
    """A study of another definition lives under the same name, or one to join has not begun."""


class TeacherError(KdsearchError):
    """A teacher that cannot be built, loaded or trained, or that is no better than chance."""


class TrialError(KdsearchError):
    """One trial failed (a loss that is not finite); the study goes on."""


class RunError(KdsearchError):
    """A run that ended early, such as after five failed trials in a row."""


def check_platform() -> None:
    """Refuse Windows: its signals, file locks and open files work differently, so a study would fail halfway."""
    if sys.platform == "win32":
        raise KdsearchError(
            "kdsearch runs on Linux and macOS",
            got="Windows",
            remedy="run it inside WSL (learn.microsoft.com/windows/wsl)",
        )
