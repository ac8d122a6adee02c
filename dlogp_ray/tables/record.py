"""Records of JSON that say the hash of all else in them: ``run.json`` and ``_SUCCESS``."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

HASH = "sha256"


def with_hash(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its hash."""
    return dict(record) | {HASH: record_hash(record)}


def record_hash(record: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what a record says, but for its own hash, however it is spelled."""
    return hash_of({name: value for name, value in record.items() if name != HASH})


def hash_of(value: Any) -> str:
    """SHA-256 (hex) of a value of JSON, however it is spelled."""
    plain = json.loads(json.dumps(value))  # a tuple is a list there, and every key is text
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
