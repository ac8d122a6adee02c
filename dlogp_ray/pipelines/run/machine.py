"""What this machine has: CPUs, GPUs, and memory that is free. In a container, what that may use."""

import os
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use: in one folder (version 2), or in one a kind."""


def cpus(cgroups: Path = CGROUPS) -> int:
    """Whole CPUs, at least one, as Ray counts them."""
    most = os.cpu_count() or 1
    try:
        if (cgroups / "cpu.max").exists():
            quota, period = (cgroups / "cpu.max").read_text().split()
        else:
            quota, period = (
                (cgroups / "cpu" / f"cpu.cfs_{name}_us").read_text().strip()
                for name in ("quota", "period")
            )
    except OSError:
        return most
    if quota in ("max", "-1"):
        return most
    return max(1, min(most, int(quota) // int(period)))


def has_gpus() -> bool:
    """Whether there is any of NVIDIA's, seen without loading what could use it."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def free_bytes(cgroups: Path = CGROUPS) -> int:
    """Memory that can still be had."""
    free = int(psutil.virtual_memory().available)
    for limit, used, statistics in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            most = (cgroups / limit).read_text().strip()
            now = int((cgroups / used).read_text())
            counts = dict(line.split() for line in (cgroups / statistics).read_text().splitlines())
        except OSError:
            continue
        if most != "max":  # pages of files are given up for others
            pages = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
            free = min(free, max(0, int(most) - now + pages))
    return free
