"""Where a row stands in its file, as people look for it: by line, not by byte alone."""

from contextlib import suppress

from dlogp_ray import store
from dlogp_ray.errors import DlogpError

_READ_BYTES = 16 * 2**20
"""So much is read to count lines; a row beyond that is told by its byte."""
_PLAIN = (".jsonl", ".ndjson")


def place(source_file: str, source_offset: int) -> str:
    """File and place of a row of a scores table.

    Args:
        source_file: Its file, which may be gone.
        source_offset: A byte of (uncompressed) JSON lines, or a row of Parquet, counted from 0.
    """
    if source_file.endswith((".parquet", ".pt")):
        return f"{source_file}, row {source_offset + 1:,}"
    line = _line(source_file, source_offset)
    byte = f"byte {source_offset:,}"
    return f"{source_file}, {byte if line is None else f'line {line:,} ({byte})'}"


def _line(uri: str, offset: int) -> int | None:
    """The line that begins at a byte, counted from 1."""
    if not uri.endswith(_PLAIN) or offset > _READ_BYTES:
        return None
    with suppress(DlogpError, OSError):
        before = store.read_range(uri, 0, offset) if offset else b""
        if len(before) == offset and before[-1:] in (b"", b"\n"):
            return before.count(b"\n") + 1
    return None
