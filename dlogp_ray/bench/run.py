"""A benchmark from beginning to end.

    dlogp bench                                  the demo pair
    dlogp bench --base PATH --rl PATH            two checkpoints
    dlogp bench … --vllm-python venv/bin/python  beside vLLM, in an environment of its own
    dlogp bench … --lm-eval-python venv/bin/python             beside lm-eval

Each round runs every arm once, in turn, so that what else the machine does hits all of them alike;
ratios are taken within a round. Speeds are medians over the rounds, with the lowest and highest.
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from dlogp_ray.bench.machine import PACKAGES, hardware, this_device, versions
from dlogp_ray.bench.result import ratios_of, spread
from dlogp_ray.bench.rounds import PEERS, Arm, measure, plan_rounds, say
from dlogp_ray.bench.texts import make_groups, make_texts
from dlogp_ray.bench.whole import MATMUL_SIZE, MATMULS
from dlogp_ray.bench.workers import Peer, Workers, check_peer
from dlogp_ray.config import BenchConfig
from dlogp_ray.policies.packing import TokenSequence, count_tokens

Texts = Mapping[str, Sequence[TokenSequence]]
"""What arms go over: each text by itself (``texts``), and those that share prompts (``groups``)."""


def run_bench(config: BenchConfig, *, progress: bool = True) -> dict[str, Any]:
    """Measure everything; nothing is written.

    Returns:
        The result document: hardware, versions, config, each arm's tokens/s (prompt and response
        tokens, both policies scored) with its spread, ratios, the share of the matmul peak, peak
        memory, padding share, noise floor.

    Raises:
        Refused: A policy or another engine can't be loaded.
    """
    pythons = _pythons(config)
    device = this_device()
    several = f"{config.processes} processes" if config.processes > 1 else "a process"
    say(f"loading both policies in {several}, a minute or so", progress)
    workers = Workers(config, device)
    peers: dict[str, Peer] = {}
    try:
        facts = workers.facts[0]
        vocabulary = min(facts["vocabulary"].values())
        texts: Texts = {
            "texts": make_texts(config, vocabulary),
            "groups": make_groups(config, vocabulary),
        }
        ids = _plain_ids(texts)
        threads, dtype = config.threads * config.processes, facts["dtype"]["base"]
        for name, python in pythons.items():
            say(f"starting {name}, which takes minutes", progress)
            peers[name] = Peer(name, python, config.base, dtype, ids, threads)
        arms = {name: _arm(name, texts, workers, peers) for name in (*config.chosen, "matmul")}
        plan_rounds(arms, config.repeats, progress)
        seconds = measure(arms, config.repeats, progress)
        last = workers.ask("facts")
        say("measuring the noise floor, half a minute or so", progress)
        noise = workers.ask("noise")[0]
    finally:
        workers.close()
        for peer in peers.values():
            peer.close()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["dlogp", *sys.argv[1:]]),
        "hardware": hardware(device),
        "versions": versions(*PACKAGES),
        "peer_versions": {name: peer.versions for name, peer in peers.items()},
        "config": config.model_dump(),
        "engine": {k: facts[k] for k in ("dtype", "batching", "token_budget")}
        | {"compiled": config.compile == "on"},
        "tokens": count_tokens(texts["texts"]),
        "texts": {name: arm.count for name, arm in arms.items() if name != "matmul"},
        **_figures(config, arms, seconds, device, facts["matmul_flops"]),
        "padding_share": facts["padding_share"],
        "peak_memory_bytes": max(fact["peak_memory_bytes"] for fact in last),
        "noise_floor": noise,
    }


def _figures(
    config: BenchConfig,
    arms: Mapping[str, Arm],
    seconds: Mapping[str, Sequence[float]],
    device: str,
    flops: float,
) -> dict[str, Any]:
    """Speeds, ratios, and the share of the matmul peak that ``flops`` a pass of the pair makes."""
    tokens = {name: arm.tokens for name, arm in arms.items()}
    peak = [MATMULS[device] * 2 * MATMUL_SIZE**3 / s for s in seconds["matmul"]]
    share = None
    if "pair" in seconds:
        share = spread([flops / s / p for s, p in zip(seconds["pair"], peak, strict=True)])
    return {
        "tokens_per_s": {
            name: spread([tokens[name] / s for s in seconds[name]]) for name in config.chosen
        },
        "ratios": ratios_of(seconds, tokens),
        "matmul_peak_flops_per_s": spread(peak),
        "share_of_matmul_peak": share,
    }


def _plain_ids(texts: Texts) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Prompt and response of each text as other engines' processes read them."""
    return {
        name: [(text.prompt_ids.tolist(), text.response_ids.tolist()) for text in each]
        for name, each in texts.items()
        if each
    }


def _arm(name: str, texts: Texts, workers: Workers, peers: Mapping[str, Peer]) -> Arm:
    if name in PEERS:
        engine, over = PEERS[name]
        return Arm(partial(peers[engine].run_twice, over), texts[over], len(texts[over]))
    over = "groups" if name.startswith("groups") else "texts"
    return Arm(partial(workers.run, name), texts[over], len(texts[over]))


def _pythons(config: BenchConfig) -> dict[str, str]:
    """Engine -> its Python, of those with an arm among the chosen; each looked at, not started."""
    given = {"vllm": config.vllm_python, "lm_eval": config.lm_eval_python}
    names = dict.fromkeys(PEERS[arm][0] for arm in config.chosen if arm in PEERS)
    pythons = {name: python for name in names if (python := given[name]) is not None}
    for name, python in pythons.items():
        check_peer(name, python)
    return pythons
