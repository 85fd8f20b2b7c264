from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from kdsearch.measure import latency

large = torch.zeros(16_000_000)  # its sum with something is a block of 64 MB

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        large + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
latency.measure(torch.nn.Identity(), torch.nn.Identity(), torch.zeros(1, 1, 2, 2))
for _ in range(5):
    faults()  # the heap grows to its size
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by their own rules")
def test_a_timed_call_finds_the_memory_of_the_call_before():
    """Counted are pages that the system had to provide while a large block was made and freed a few times."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    given_back, kept = map(int, run.stdout.split())
    assert kept < 0.05 * given_back
