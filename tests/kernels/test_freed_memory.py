"""Memory that stays with the process, seen by the pages that the system hands out again."""

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, torch
from transformer_dropout.kernels.freed_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def step():
    held = [torch.ones(1_000_000) for _ in range(20)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(way):
    # By itself glibc moves this threshold with what was freed before.
    fixed = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, way], capture_output=True, text=True, check=True, env=fixed
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_what_a_step_freed_is_there_for_the_next():
    # 10 steps of 80 MB: 195,000 pages of 4 KB.
    assert pages("given back") > 100_000
    assert pages("kept") < 1_000
