"""Whether a run that is there was made from what a job has now."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from dlogp_ray import store
from dlogp_ray.errors import FingerprintMismatch, Refused
from dlogp_ray.tables.info import SCHEMA
from dlogp_ray.tables.stored import StoredRun

_VERSION = " version"


def check_fingerprint(run: StoredRun, fingerprint: Mapping[str, Any]) -> None:
    """Check that an existing run was made from the same inputs, policies and settings.

    Raises:
        FingerprintMismatch: They differ; the differences are named.
        Refused: As ``check_schema``, of a run to which rows may still be added.
    """
    if not run.sealed:
        check_schema(run, fingerprint)
    stored, given = run.info.fingerprint, json.loads(json.dumps(fingerprint))
    if stored.get(SCHEMA) != given.get(SCHEMA):  # a later one may name more
        given = {name: value for name, value in given.items() if name in stored}
        _spell_versions(stored.get("corpus", {}), given.get("corpus", {}))
    differences = list(_differences(stored | {SCHEMA: None}, given | {SCHEMA: None}))
    if differences:
        raise FingerprintMismatch(
            f"run {run.uri} exists and was made from something else:\n"
            + "\n".join(f"  {line}" for line in differences[:10])
            + f"\nUse another {run.kind.named_by}, or give what the run was made from"
        )


def _spell_versions(stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Spell versions of files that have not changed as they were spelled before schema 3."""
    for uri in stored.keys() & given.keys():
        if store.same_etag(stored[uri]["version"], given[uri]["version"]):
            given[uri]["version"] = stored[uri]["version"]


def check_schema(run: StoredRun, fingerprint: Mapping[str, Any]) -> None:
    """Check that what a job would add to a run is of the schema that its rows have.

    Raises:
        Refused: They are of another.
    """
    stored, given = run.info.fingerprint.get(SCHEMA), fingerprint.get(SCHEMA)
    if stored != given:
        begun_by = run.info.versions.get("dlogp_ray", "the version that began it")
        raise Refused(
            f"run {run.uri} was begun by dlogp_ray {begun_by}, which writes schema {stored} of the "
            f"{run.kind.table} table; this version writes schema {given}, and a run has one. Use "
            f"another {run.kind.named_by}, or dlogp_ray {begun_by}"
        )


def _differences(stored: Any, given: Any, where: str = "") -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(given, dict):
        for key in sorted(stored.keys() | given.keys()):
            name = f"{where} {key}".strip()
            if key not in stored:
                yield f"{name}: the run has none, now {_short(given[key])}"
            elif key not in given:
                yield f"{name}: the run has {_short(stored[key])}, now none"
            else:
                yield from _differences(stored[key], given[key], name)
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        for index, (mine, theirs) in enumerate(zip(stored, given, strict=True)):
            yield from _differences(mine, theirs, f"{where}[{index}]")
    elif stored != given:
        what = where.removesuffix(_VERSION)
        times = [_time(value) for value in (stored, given)] if what != where else [None]
        if None in times:
            yield f"{where}: the run has {_short(stored)}, now {_short(given)}"
        else:
            yield f"{what}: changed at {times[0]} when the run began, now at {times[1]}"


def _time(version: Any) -> str | None:
    """The time of change that is the version of a file on a disk; None of another version."""
    if not re.fullmatch(r"\d{17,20}", str(version)):
        return None
    seconds, nanoseconds = divmod(int(version), 10**9)
    at = datetime.fromtimestamp(seconds, tz=UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{nanoseconds:09d} UTC"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
