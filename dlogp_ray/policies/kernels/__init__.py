"""What torch has no operator for on a CPU, in C++; built where it is used and a job is worth it."""

import os
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch

_SOURCES = ("product.cpp", "attention.cpp")


@cache
def bfloat16_kernels() -> Any:
    """``product(hidden, weight, out)`` and ``attend(query, key, value, out, scaling)``, or None.

    None where they can't be built or bring nothing. Building takes about 20 s, once on a machine;
    it needs a C++ compiler, as ``torch.compile`` does, and a processor that multiplies bfloat16.
    """
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    # Torch's build runs `ninja`, which stands beside the interpreter.
    os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")
    from torch.utils.cpp_extension import load

    try:
        load(
            "dlogp_ray_kernels",
            [str(Path(__file__).with_name(name)) for name in _SOURCES],
            extra_cflags=[
                "-O3",
                "-march=native",
                # What makes torch's own vectors 512 bits wide.
                "-DCPU_CAPABILITY=AVX512",
                "-DCPU_CAPABILITY_AVX512",
            ],
            is_python_module=False,
        )
    except (RuntimeError, OSError, ImportError):
        return None
    return torch.ops.dlogp_ray
