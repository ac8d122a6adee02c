"""What every worker of a reweight job needs to know."""

from dataclasses import dataclass
from typing import ClassVar

from dlogp_ray.pipelines.run.job import Job
from dlogp_ray.tables.kinds import WEIGHTS, Kind
from dlogp_ray.weights.rows import Weighing


@dataclass(frozen=True)
class ReweightJob(Job):
    """What every worker of a reweight job needs to know.

    Attributes:
        weighing: What is weighed by what.
        threshold: The entropy from which ``entropy_top`` keeps a token; None before it is found.
    """

    kind: ClassVar[Kind] = WEIGHTS

    weighing: Weighing
    threshold: float | None = None
