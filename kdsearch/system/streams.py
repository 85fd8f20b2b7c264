"""Keep stdout for a command's result: what users' own code and libraries print while it works goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

STDOUT, STDERR = 1, 2


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send stdout to stderr: of Python, and of C libraries and programs that are started, which write to descriptor 1.

    A teacher that prints, or a download that says so, would else write into the JSON that another program reads.
    """
    kept = None
    with suppress(OSError, ValueError):  # stdout may be closed
        sys.stdout.flush()
        kept = os.dup(STDOUT)
        os.dup2(STDERR, STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, STDOUT)
            os.close(kept)
