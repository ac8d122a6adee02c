"""What torch lacks or is slower at on a CPU, in C++; built where a job is worth it."""

import os
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SOURCES = ("product.cpp", "attention.cpp")


@cache
def bfloat16_kernels() -> Any:
    """``product``, ``linear`` and ``attend`` as their sources say, or None.

    None where they can't be built or bring nothing: on a processor that does not multiply bfloat16
    in vectors, or that has tiles (AMX), which torch's own products use and these do not. Building
    takes about 20 s, once on a machine; it needs a C++ compiler, as ``torch.compile`` does.
    """
    if not torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
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
    torch.library.register_fake("dlogp_ray::linear", _linear_shape)
    return torch.ops.dlogp_ray


def _linear_shape(hidden: Tensor, weight: Tensor) -> Tensor:
    return hidden.new_empty(hidden.shape[0], weight.shape[0])
