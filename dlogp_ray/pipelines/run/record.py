"""What the record of a new run says, whatever the job is."""

import hashlib
import importlib.metadata
from datetime import UTC, datetime
from typing import Any

from dlogp_ray.pipelines.run.plan import AnyJob, RunPlan

PACKAGES = ("dlogp_ray", "ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy")


def common_info(plan: RunPlan[AnyJob]) -> dict[str, Any]:
    """The fields that every record has, as ``RunInfo`` takes them."""
    return {
        "job": plan.job.kind.job,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": plan.config,
        "units": {
            "count": len(plan.units),
            "tokens": plan.tokens,
            "sha256": hashlib.sha256(plan.encoded(plan.units)).hexdigest(),
        },
        "fingerprint": plan.fingerprint,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
