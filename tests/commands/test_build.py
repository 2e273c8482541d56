"""How a process is arranged for its hardware."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = """
import resource
import torch
from betasigma.devices import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
returned = faults()
keep_freed_memory()
faults()
print(returned, faults())
"""


PAGES = """
import re
import torch
from betasigma.devices import keep_freed_memory

def kilobytes(file, name):
    return sum(map(int, re.findall(name + r":\s+(\d+) kB", open(file).read())))

before = kilobytes("/proc/self/status", "VmRSS")
keep_freed_memory()
taken = kilobytes("/proc/self/status", "VmRSS") - before
numbers = torch.ones(2**24)
print(taken, kilobytes("/proc/self/smaps", "AnonHugePages"))
"""
ADVICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set up")
@pytest.mark.parametrize("limited", [False, True])
def test_tensors_have_huge_pages_where_address_space_is_not_limited(limited: bool) -> None:
    if not ADVICE.exists() or "[never]" in ADVICE.read_text():
        pytest.skip("this system has no huge pages")
    most = "ulimit -v 30000000; " if limited else ""
    command = ["sh", "-c", f'{most}exec "$@"', "sh", sys.executable, "-c", PAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken, huge = map(int, done.stdout.split())
    assert taken < 8 * 2**10  # a few huge pages, of gigabytes of addresses
    everywhere = "[always]" in ADVICE.read_text()
    assert (huge > 2**15) is (everywhere or not limited)  # of the tensor's 64 MiB


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set up")
def test_the_memory_of_freed_tensors_is_kept_for_the_next_ones() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    returned, kept = map(int, done.stdout.split())
    assert kept < returned / 10
