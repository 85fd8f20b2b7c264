"""Keep stdout for a command's result: send the output of users' code and of libraries to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

STDOUT, STDERR = 1, 2


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send stdout to stderr: Python's, and that of C libraries and started programs, which write to descriptor 1.

    A teacher that prints, or a download that reports progress, would otherwise corrupt the JSON on stdout.
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
