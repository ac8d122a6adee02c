"""Load the policies once, where an actor would, before any actor exists.

The probe measures one actor's speed on made-up sequences and chooses the engine by it, and it
measures the noise floor on texts of the corpus.
"""

import gc
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from dlogp_ray.corpus.units import Unit
from dlogp_ray.errors import Refused
from dlogp_ray.pipelines.run.executor import Executor
from dlogp_ray.pipelines.run.placement import Node, Placement
from dlogp_ray.pipelines.score.actor import ScoreUnit
from dlogp_ray.pipelines.score.job import ScoreJob
from dlogp_ray.pipelines.score.sample import sample_texts
from dlogp_ray.policies.packing import TokenSequence, count_tokens
from dlogp_ray.scoring.engine import (
    COMPILING_FROM_S,
    TRIAL_SHARE,
    Engine,
    compiling_pays,
    thread_choices,
)
from dlogp_ray.scoring.noise import ROUNDING_S, ROUNDING_SHARE, measure_noise
from dlogp_ray.tables.noise import NoiseFloor

_SEQUENCE_TOKENS = 256
_SHORT_PASS_S = 1.0
"""A pass that is shorter is made twice: what else the machine does can only make it longer."""
_NOISE_TOKENS = range(1_024, 16_384 + 1)
"""The least and the most of the noise floor's sample; a 99th percentile of less says little."""
_NOISE_S = 2.0
"""What scoring the sample once may take; twice and the base against itself is about three times.
What its part in float32 may take is ``measure_noise``'s."""


@dataclass(frozen=True)
class Probe:
    """What was seen.

    Attributes:
        placement: Of the actors, with the engine's threads.
        widths: Policy -> rows of its lm head.
        tokens_per_s: Tokens that one actor alone scores with all policies, of random sequences.
        engine: How the run is to score.
        noise: The floor with that engine; None where nothing was sampled.
        noise_s: Seconds that measuring it took.
    """

    placement: Placement
    widths: dict[str, int]
    tokens_per_s: float
    engine: Engine
    noise: NoiseFloor | None
    noise_s: float


def probe(
    job: ScoreJob,
    executor: Executor,
    tokens: int,
    sample: Sequence[Unit],
    *,
    progress: bool = False,
) -> Probe:
    """Load and try the policies with the resources of one actor, and choose the engine.

    Args:
        job: With the engine of the run, where it has one.
        executor: Where they are tried.
        tokens: What all actors together have to score.
        sample: Units with whose first texts the noise floor is measured; none for none.
        progress: Say on standard error what is waited for.

    Raises:
        Refused: The cluster can't hold the actors, a policy can't be loaded, or its head is
            smaller than its config says.
    """
    threads = job.engine.threads if job.engine else None
    placement = executor.place(job.config, threads, progress=progress)
    seen = executor.attempt(placement, _probe, job, placement, executor.node(), tokens, sample)
    for name, width in seen.widths.items():
        if width < job.rules.vocab_size:
            raise Refused(
                f"policy {name}: vocab sizes are incompatible: the lm head has {width} rows, "
                f"expected at least {job.rules.vocab_size}"
            )
    return replace(seen, placement=executor.place(job.config, seen.engine.threads))


def _probe(
    job: ScoreJob, placement: Placement, node: Node, tokens: int, sample: Sequence[Unit]
) -> tuple[Probe, ScoreUnit]:
    device = placement.device
    engine = job.engine or job.default_engine(device)
    spread = placement.gpus > 1
    unit = ScoreUnit(replace(job, engine=engine), device, placement.threads, spread=spread)
    tokens_per_actor = tokens // placement.max_actors
    speed = _tokens_per_s(unit, job, engine)
    if job.engine is None:
        label = "compiled" if engine.compiled else "eager"
        engine = replace(engine, threads=placement.threads, tokens_per_s={label: speed})
        if device == "cpu" and not (job.config.threads_per_actor or job.config.actors):
            node = replace(node, actors=placement.max_actors)
            engine = _choose_threads(unit, job, engine, node, tokens_per_actor)
            if engine.threads != placement.threads:
                torch.set_num_threads(engine.threads)
                speed = _tokens_per_s(unit, job, engine)
                engine = replace(engine, tokens_per_s={**engine.tokens_per_s, label: speed})
        if job.config.compile == "auto" and tokens_per_actor / speed > COMPILING_FROM_S:
            engine = _try_compiling(unit, job, engine, tokens_per_actor)
            speed = engine.tokens_per_s["compiled" if engine.compiled else "eager"]
            if not engine.compiled:  # what was tried can't be undone
                del unit
                gc.collect()
                again = replace(job, engine=engine)
                unit = ScoreUnit(again, device, engine.threads, spread=spread)
    texts = sample_texts(job, sample, _noise_tokens(speed)) if sample else []
    rounding_s = max(ROUNDING_S, ROUNDING_SHARE * tokens_per_actor / speed)
    before = time.monotonic()
    noise = measure_noise(unit.scorer, texts, rounding_s) if texts else None
    unit.engine = engine
    found = Probe(
        placement=placement,
        widths={name: policy.lm_head.width for name, policy in unit.policies.items()},
        tokens_per_s=speed,
        engine=engine,
        noise=noise,
        noise_s=time.monotonic() - before,
    )
    return found, unit


def _choose_threads(
    unit: ScoreUnit, job: ScoreJob, engine: Engine, node: Node, tokens_per_actor: int
) -> Engine:
    """With as many threads an actor as score most on a whole node; what was seen is kept.

    Where the job is too short for a trial, as few as there is memory for.
    """
    choices = thread_choices(node.cpus, node.memory_bytes, unit.policies_bytes)
    texts = _made_up(job, engine)
    trial_tokens = len(choices) * count_tokens(texts[:1] + texts)
    speeds: dict[int, float] = {}
    if len(choices) > 1 and trial_tokens <= TRIAL_SHARE * tokens_per_actor:
        speeds = {n: _node_tokens_per_s(unit, job, engine, node.room(n), n) for n in choices}
    labels = {f"{node.room(n)} x {n} threads": speed for n, speed in speeds.items()}
    return replace(
        engine,
        threads=max(speeds, key=speeds.__getitem__, default=choices[0]),
        tokens_per_s={**engine.tokens_per_s, **labels},
    )


def _node_tokens_per_s(
    unit: ScoreUnit, job: ScoreJob, engine: Engine, actors: int, threads: int
) -> float:
    """What so many actors score together: threads of this process stand for them."""
    with ThreadPoolExecutor(actors, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        tries = [pool.submit(_tokens_per_s, unit, job, engine) for _ in range(actors)]
        return sum(attempt.result() for attempt in tries)


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
    measured = {**engine.tokens_per_s, "compiled": speed}
    return replace(engine, compiled=pays, tokens_per_s=measured)


def _tokens_per_s(unit: ScoreUnit, job: ScoreJob, engine: Engine) -> float:
    sequences = _made_up(job, engine)
    unit.scorer.score(sequences[:1])  # the first call pays for set-up

    def once() -> float:
        started = time.monotonic()
        unit.scorer.score(sequences)
        return time.monotonic() - started

    seconds = once()
    if seconds < _SHORT_PASS_S:
        seconds = min(seconds, once())
    return count_tokens(sequences) / seconds


def _made_up(job: ScoreJob, engine: Engine) -> list[TokenSequence]:
    """Random texts: of half a pass, a quarter of each its prompt."""
    tokens = _SEQUENCE_TOKENS
    if job.rules.max_tokens is not None:
        tokens = min(tokens, job.rules.max_tokens)
    count = max(1, engine.token_budget // tokens // 2)
    ids = np.random.default_rng(0).integers(0, job.rules.vocab_size, (count, tokens))
    return [TokenSequence(*np.split(text, [max(1, tokens // 4)])) for text in ids]
