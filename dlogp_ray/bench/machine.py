"""What figures were measured on: the machine, and the versions of what ran."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("dlogp_ray", "torch", "transformers", "numpy")


def this_device() -> str:
    """What torch computes on here."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each."""
    return {name: importlib.metadata.version(name) for name in packages}


def hardware(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "processor": processor,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
    }
