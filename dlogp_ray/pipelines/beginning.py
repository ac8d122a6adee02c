"""The run that is there before a job begins, and what the record of a new one says."""

import hashlib
import importlib.metadata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dlogp_ray.corpus.units import Units, encode_units
from dlogp_ray.pipelines.job import Job
from dlogp_ray.tables.fingerprint import check_fingerprint
from dlogp_ray.tables.run import Run, find_run

PACKAGES = ("dlogp_ray", "ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


def existing_run(uri: str, fingerprint: Mapping[str, Any]) -> Run | None:
    """The run that is there, if any.

    Raises:
        FingerprintMismatch: It was made from something else.
    """
    run = find_run(uri)
    if run is not None:
        check_fingerprint(run, fingerprint)
    return run


def common_info(job: Job, units: Units, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """What every ``run.json`` says."""
    return {
        "job": job.kind.job,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": job.config.model_dump(mode="json"),
        "units": {
            "count": len(units),
            "tokens": units.tokens,
            "sha256": hashlib.sha256(encode_units(units)).hexdigest(),
        },
        "fingerprint": fingerprint,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of the packages that numbers come from, or tables."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}
