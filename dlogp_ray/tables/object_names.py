"""What a run's objects are called; a unit's ``part-00000042``, so that names sort as units do."""

import re

RECORD, UNITS = "run.json", "units.parquet"
MANIFEST, SEAL = "manifest.parquet", "_SUCCESS"
_ENDING = ".parquet"
_NAME = re.compile(r"part-(\d{8}|[1-9]\d{8,})")


def unit_name(index: int) -> str:
    """The name of a unit's object and of its records, without an ending."""
    return f"part-{index:08d}"


def unit_index(name: str) -> int | None:
    """Which unit has a name; None where it is no unit's."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def object_name(table: str, unit: str) -> str:
    """Where a unit's object is, below the run: ``scores/part-00000042.parquet``."""
    return f"{table}/{unit}{_ENDING}"


def object_index(file_name: str) -> int | None:
    """Which unit's object has a file name; None where it is no unit's."""
    return unit_index(file_name.removesuffix(_ENDING)) if file_name.endswith(_ENDING) else None
