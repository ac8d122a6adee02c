"""Load the policies once, where an actor would, before any actor exists.

An actor whose constructor fails is restarted for ever; a task without retries fails at once, with
its reason. The probe also measures one actor's speed on made-up sequences and chooses the engine
by it, and it measures the noise floor on texts of the corpus.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import ray

from dlogp_ray.corpus.units import Unit
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.actor import ScoreUnit
from dlogp_ray.pipelines.cluster import Placement
from dlogp_ray.pipelines.planning import ScoreJob
from dlogp_ray.pipelines.sample import sample_texts
from dlogp_ray.scoring.engine import COMPILING_S, Engine, compiling_pays
from dlogp_ray.scoring.noise import measure_noise
from dlogp_ray.scoring.packing import TokenSequence
from dlogp_ray.tables.noise import NoiseFloor

_SEQUENCE_TOKENS = 256
_NOISE_TOKENS = range(1_024, 16_384 + 1)
"""The least and the most of the noise floor's sample; a 99th percentile of less says little."""
_NOISE_S = 2.0
"""What scoring the sample once may take; twice and the base against itself is about three times."""


@dataclass(frozen=True)
class Probe:
    """What was seen.

    Attributes:
        device: Where the policies were held.
        widths: Policy -> rows of its lm head.
        tokens_per_s: Tokens that one actor alone scores with all policies, of random sequences.
        engine: How the run is to score.
        noise: What other batches change with that engine; None where nothing was sampled.
    """

    device: str
    widths: dict[str, int]
    tokens_per_s: float
    engine: Engine
    noise: NoiseFloor | None


def probe(job: ScoreJob, placement: Placement, tokens: int, sample: Sequence[Unit]) -> Probe:
    """Load and try the policies with the resources of one actor, and choose the engine.

    Args:
        job: With the engine of the run, where it has one.
        placement: Of the actors.
        tokens: What all actors together have to score.
        sample: Units with whose first texts the noise floor is measured; none for none.

    Raises:
        Refused: A policy can't be loaded, or its head is smaller than its config says.
    """
    remote = ray.remote(_probe).options(
        num_cpus=placement.cpus, num_gpus=placement.gpus, max_retries=0
    )
    try:
        seen: Probe = ray.get(
            remote.remote(job, placement.device, tokens // placement.actors, sample)
        )
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


def _probe(job: ScoreJob, device: str, tokens_per_actor: int, sample: Sequence[Unit]) -> Probe:
    engine = job.engine or job.default_engine(device)
    unit = ScoreUnit(replace(job, engine=engine), device)
    speed = _tokens_per_s(unit, job, engine)
    texts = sample_texts(job, sample, _noise_tokens(speed)) if sample else []
    noise = measure_noise(unit.scorer, texts) if texts else None
    if job.engine is None:
        if engine.compiled:
            engine = replace(engine, tokens_per_s={"compiled": speed})
        else:
            engine = replace(engine, tokens_per_s={"eager": speed})
            if job.config.compile == "auto" and tokens_per_actor / speed > COMPILING_S:
                engine = _try_compiling(unit, job, engine, tokens_per_actor)
                if engine.compiled and texts:
                    noise = measure_noise(unit.scorer, texts)
    return Probe(
        device=device,
        widths={name: policy.lm_head.width for name, policy in unit.policies.items()},
        tokens_per_s=engine.tokens_per_s["compiled"] if engine.compiled else speed,
        engine=engine,
        noise=noise,
    )


def _noise_tokens(tokens_per_s: float) -> int:
    """A power of two, so that speeds that differ a little give one sample."""
    wanted = max(_NOISE_TOKENS[0], min(int(_NOISE_S * tokens_per_s), _NOISE_TOKENS[-1]))
    return int(2 ** (wanted.bit_length() - 1))


def _try_compiling(unit: ScoreUnit, job: ScoreJob, engine: Engine, tokens_per_actor: int) -> Engine:
    """The engine that ends sooner; where nothing can be compiled, the one without."""
    eager = engine.tokens_per_s["eager"]
    unit.scorer.compile()
    started = time.monotonic()
    try:
        speed = _tokens_per_s(unit, job, engine)
    except (RuntimeError, OSError):  # what a compiler that is missing or fails comes to
        return engine
    compile_s = time.monotonic() - started
    pays = compiling_pays(tokens_per_actor, eager, speed, compile_s)
    return replace(engine, compiled=pays, tokens_per_s={"eager": eager, "compiled": speed})


def _tokens_per_s(unit: ScoreUnit, job: ScoreJob, engine: Engine) -> float:
    tokens = _SEQUENCE_TOKENS
    if job.rules.max_tokens is not None:
        tokens = min(tokens, job.rules.max_tokens)
    generator = np.random.default_rng(0)
    sequences = [
        TokenSequence(*np.split(ids, [max(1, tokens // 4)]))
        for ids in generator.integers(
            0, job.rules.vocab_size, (max(1, engine.token_budget // tokens), tokens)
        )
    ]
    unit.scorer.score(sequences[:1])  # the first call pays for set-up
    started = time.monotonic()
    unit.scorer.score(sequences)
    return len(sequences) * tokens / (time.monotonic() - started)
