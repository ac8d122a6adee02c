"""Load the policies once, where an actor would, before any actor exists.

An actor whose constructor fails is restarted for ever; a task without retries fails at once, with
its reason. The probe also measures one actor's speed on made-up sequences.
"""

import time
from dataclasses import dataclass

import numpy as np
import ray

from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.actor import ScoreUnit
from dlogp_ray.pipelines.cluster import Placement
from dlogp_ray.pipelines.planning import ScoreJob
from dlogp_ray.scoring.packing import TokenSequence

_SEQUENCE_TOKENS = 256


@dataclass(frozen=True)
class Probe:
    """What was seen.

    Attributes:
        device: Where the policies were held.
        widths: Policy -> rows of its lm head.
        tokens_per_s: Tokens that one actor alone scores with all policies, of random sequences.
    """

    device: str
    widths: dict[str, int]
    tokens_per_s: float


def probe(job: ScoreJob, placement: Placement) -> Probe:
    """Load and try the policies with the resources of one actor.

    Raises:
        Refused: A policy can't be loaded, or its head is smaller than its config says.
    """
    remote = ray.remote(_probe).options(
        num_cpus=placement.cpus, num_gpus=placement.gpus, max_retries=0
    )
    try:
        seen: Probe = ray.get(remote.remote(job, placement.device))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Refused):
            raise Refused(str(cause)) from None
        raise Refused(f"the policies can't be tried: {type(cause).__name__}: {cause}") from error
    except ray.exceptions.RayError as error:
        raise Refused(
            "the process that loads the policies died, perhaps for want of memory "
            f"({type(error).__name__}: {error}); try fewer or smaller policies on one actor"
        ) from None
    for name, width in seen.widths.items():
        if width < job.rules.vocab_size:
            raise Refused(
                f"policy {name}: vocab sizes are incompatible: the lm head has {width} rows, "
                f"expected at least {job.rules.vocab_size}"
            )
    return seen


def _probe(job: ScoreJob, device: str) -> Probe:
    unit = ScoreUnit(job, device)
    tokens = _SEQUENCE_TOKENS
    if job.rules.max_tokens is not None:
        tokens = min(tokens, job.rules.max_tokens)
    generator = np.random.default_rng(0)
    sequences = [
        TokenSequence(*np.split(ids, [max(1, tokens // 4)]))
        for ids in generator.integers(
            0, job.rules.vocab_size, (max(1, job.config.token_budget // tokens), tokens)
        )
    ]
    unit.scorer.score(sequences[:1])  # the first call pays for set-up
    started = time.monotonic()
    unit.scorer.score(sequences)
    seconds = time.monotonic() - started
    return Probe(
        device=device,
        widths={name: policy.lm_head.width for name, policy in unit.policies.items()},
        tokens_per_s=len(sequences) * tokens / seconds,
    )
