from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kdsearch.cli.progress import stdout_to_stderr

SCRIPT = """
import ctypes, os, subprocess, sys
from kdsearch.cli.progress import stdout_to_stderr
print("result 1")
with stdout_to_stderr(), stdout_to_stderr():
    print("python")
    os.write(1, b"descriptor\\n")
    subprocess.run(["echo", "program"], check=True)
print("result 2")
"""


def test_stdout_holds_the_result_alone():
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert ran.stdout == "result 1\nresult 2\n"
    assert sorted(ran.stderr.split()) == ["descriptor", "program", "python"]


def test_a_closed_stdout_is_no_trouble():
    script = f"import os\nos.close(1)\n{SCRIPT.split('print')[0]}\nwith stdout_to_stderr():\n    print('python')\n"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "python" in ran.stderr


def test_stdout_is_put_back_after_an_error(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(ZeroDivisionError), stdout_to_stderr():
        _ = 1 / 0
    os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"
