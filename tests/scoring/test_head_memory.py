"""The head's extra memory is bounded, however many rows there are."""

import json
import os
import subprocess
import sys

import pytest

# In a process of its own: the kernel's high-water mark of memory is reset before each measurement.
MEASURE = """
import json, re, sys
from pathlib import Path
import torch
from dlogp_ray.policies.lm_head import LmHead
from dlogp_ray.scoring.statistics import score_rows

torch.set_num_threads(1)
compiled, rows = json.loads(sys.argv[1])
width, size = 152_064, 128

def kib(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\\s+(\\d+)", status)[1])

heads = {n: LmHead(torch.zeros(width, size, dtype=torch.bfloat16)) for n in ("base", "rl")}
for head in heads.values():
    head.weight.normal_()

def run(n):
    hidden = {name: torch.randn(n, size).bfloat16() for name in heads}
    targets = torch.randint(0, width, (n,))
    for _ in range(5):
        Path("/proc/self/clear_refs").write_text("5")
        before, of_files = kib("VmHWM"), kib("RssFile")
        score_rows(hidden, heads, targets, base="base", compiled=compiled)
        # Where the system has taken pages of the libraries' code away, they come back meanwhile (22
        # MB were seen) and count in the mark: such a reading is taken again.
        if kib("RssFile") == of_files:
            return (kib("VmHWM") - before) * 1024
    sys.exit("pages of files came back in each of five readings")

run(3)  # libraries, and what compiling takes
print(json.dumps([run(n) for n in rows]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_extra_memory_is_below_64_mb_whatever_the_number_of_rows(compiled: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps([compiled, [20, 80]])],
        capture_output=True,
        text=True,
        check=True,
        # So that large blocks go back to the system when they are freed. By default glibc moves
        # this limit up to 32 MB, and holes in its heap count: one call read 41 to 85 MB for the
        # 50 that it held.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"},
    )
    # [80, v] of two policies in float32 would be 97 MB, a head in float32 78 MB.
    assert max(json.loads(done.stdout)) < 64e6
