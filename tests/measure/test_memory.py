from __future__ import annotations

import platform
import resource

import pytest
import torch

from kdsearch.measure import memory

LARGE = torch.zeros(16_000_000)  # its sum with something is a block of 64 MB


def faults(calls: int = 4) -> int:
    """Pages that the system had to provide while a large block was made and freed so often."""
    _ = LARGE + 1
    del _
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        LARGE + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by their own rules")
def test_a_timed_call_finds_the_memory_of_the_call_before():
    given_back = faults()
    with memory.kept():
        faults()  # the heap grows to its size
        kept = faults()
    assert kept < 0.05 * given_back
    assert faults() > 10 * kept + 100  # and afterwards memory goes back to the system as before
