"""A benchmark from beginning to end.

    dlogp bench                                  the demo pair
    dlogp bench --base PATH --rl PATH            two checkpoints
    dlogp bench … --vllm-python venv/bin/python  beside vLLM, in an environment of its own
    dlogp bench … --lm-eval-python venv/bin/python             beside lm-eval

Each round runs every arm once, in turn, so that what else the machine does hits all of them alike;
ratios are taken within a round. Speeds are medians over the rounds, with the lowest and highest.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dlogp_ray.bench.workers import MATMUL_SIZE, MATMULS, Peer, Workers
from dlogp_ray.config import BenchConfig
from dlogp_ray.errors import Refused

ARMS = {
    "pair": "both policies, all statistics",
    "pair_sampled": "both policies, log-probabilities of the sampled tokens only",
    "bodies": "both bodies, no head",
    "bodies_and_bare_heads": "both bodies and the heads' bare products",
    "naive_logp_twice": "plain forward and log-softmax, both policies: log p only",
    "naive_statistics": "plain forward of both policies, all statistics",
    "vllm_twice": "vLLM prompt_logprobs, two passes: log p and rank only",
    "lm_eval_twice": "lm-eval log-likelihoods, two passes: summed log p only",
    "heads": "heads and statistics alone",
    "groups_shared": "groups of 8 x 128 tokens on prompts of 512",
    "groups_unshared": "the same without sharing prompts",
}
RATIOS = {
    "pair / vllm_twice": ("pair", "vllm_twice"),
    "pair / lm_eval_twice": ("pair", "lm_eval_twice"),
    "pair / naive_logp_twice": ("pair", "naive_logp_twice"),
    "pair / naive_statistics": ("pair", "naive_statistics"),
    "groups_shared / groups_unshared": ("groups_shared", "groups_unshared"),
}
PEER_ARMS = ("vllm_twice", "lm_eval_twice")
WARM = ("naive_logp_twice", "naive_statistics", *PEER_ARMS)
"""Arms without a round that is not counted: they compile nothing, or have made a pass."""
_MATMUL_FLOPS = MATMULS * 2 * MATMUL_SIZE**3
PACKAGES = ("dlogp_ray", "torch", "transformers", "numpy")


def run_bench(config: BenchConfig, *, progress: bool = True) -> dict[str, Any]:
    """Measure everything; nothing is written.

    Returns:
        The result document: hardware, versions, config, each arm's tokens/s (prompt and response
        tokens, both policies scored) with its spread, ratios, the share of the matmul peak, peak
        memory, padding share, noise floor.

    Raises:
        Refused: A policy or another engine can't be loaded.
    """
    from dlogp_ray.bench.texts import make_groups, make_texts
    from dlogp_ray.scoring.packing import count_tokens

    device = _device()
    workers = Workers(config, device)
    peers: dict[str, Peer] = {}
    try:
        facts = workers.facts[0]
        vocabulary = min(facts["vocabulary"].values())
        texts, groups = make_texts(config, vocabulary), make_groups(config, vocabulary)
        ids = [(t.prompt_ids.tolist(), t.response_ids.tolist()) for t in texts]
        threads = config.threads * config.processes
        for name, python in (("vllm", config.vllm_python), ("lm_eval", config.lm_eval_python)):
            if python:
                dtype = facts["dtype"]["base"]
                peers[name] = Peer(name, python, config.base, dtype, ids, threads)
        arms: dict[str, Callable[[], float]] = {
            name: partial(workers.run, name)
            for name in (*ARMS, "matmul")
            if name not in PEER_ARMS and (config.groups or not name.startswith("groups"))
        }
        arms |= {f"{name}_twice": peer.run_twice for name, peer in peers.items()}
        seconds = _measure(arms, config.repeats, progress)
        last = workers.ask("facts")
        noise = workers.ask("noise")[0]
    finally:
        workers.close()
        for peer in peers.values():
            peer.close()
    tokens = {name: count_tokens(groups if name.startswith("groups") else texts) for name in ARMS}
    peak = [_MATMUL_FLOPS / s for s in seconds["matmul"]]
    flops = facts["matmul_flops"]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["dlogp", *sys.argv[1:]]),
        "hardware": hardware(device),
        "versions": versions(*PACKAGES),
        "peer_versions": {name: peer.versions for name, peer in peers.items()},
        "config": config.model_dump(),
        "engine": {k: facts[k] for k in ("dtype", "batching", "token_budget")}
        | {"compiled": config.compile == "on"},
        "tokens": tokens["pair"],
        "tokens_per_s": {
            name: _spread([tokens[name] / s for s in seconds[name]])
            for name in ARMS
            if name in seconds
        },
        "ratios": {
            label: _spread(
                [
                    (tokens[one] / a) / (tokens[two] / b)
                    for a, b in zip(seconds[one], seconds[two], strict=True)
                ]
            )
            for label, (one, two) in RATIOS.items()
            if one in seconds and two in seconds
        }
        | {
            "statistics' share over bodies and bare heads": _spread(
                [
                    a / b - 1
                    for a, b in zip(seconds["pair"], seconds["bodies_and_bare_heads"], strict=True)
                ]
            )
        },
        "matmul_peak_flops_per_s": _spread(peak),
        "share_of_matmul_peak": _spread(
            [flops / s / p for s, p in zip(seconds["pair"], peak, strict=True)]
        ),
        "padding_share": facts["padding_share"],
        "peak_memory_bytes": max(fact["peak_memory_bytes"] for fact in last),
        "noise_floor": noise,
    }


def print_bench(result: dict[str, Any], console: Console) -> None:
    """Text for people."""
    table = Table(box=None)
    for column in ("", "tokens/s", "lowest", "highest"):
        table.add_column(column, justify="left" if not column else "right")
    for name, spread in result["tokens_per_s"].items():
        table.add_row(ARMS[name], *(f"{spread[k]:,.0f}" for k in ("median", "min", "max")))
    console.print(table)
    table = Table(box=None)
    for column in ("ratio, within a round", "median", "lowest", "highest"):
        table.add_column(column, justify="right" if table.columns else "left")
    for name, spread in result["ratios"].items():
        table.add_row(name, *(f"{spread[k]:.2f}" for k in ("median", "min", "max")))
    console.print(table)
    engine = result["engine"]
    memory, peak = result["peak_memory_bytes"] / 2**20, result["matmul_peak_flops_per_s"]["median"]
    console.print(
        f"{engine['dtype']['base']}, {'compiled' if engine['compiled'] else 'eager'}, "
        f"{engine['token_budget']:,} tokens a pass; "
        f"{result['share_of_matmul_peak']['median']:.0%} of {peak / 1e9:,.0f} GFLOP/s; "
        f"{memory:,.0f} MiB at most in one process; padding {result['padding_share']:.1%}"
    )


def write_bench(result: dict[str, Any], path: Path) -> None:
    """Write the result file.

    Raises:
        Refused: The file can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise Refused(f"--out {path}: {error.strerror}; give a file that can be written") from None


def _measure(
    arms: dict[str, Callable[[], float]], repeats: int, progress: bool
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        warm_up = [name for name in arms if name not in WARM]
        task = bar.add_task("", total=len(warm_up) + len(arms) * repeats)
        for name in warm_up:  # compiles, and fills caches
            bar.update(task, description=f"warm-up: {name}", advance=1)
            arms[name]()
        for round_number in range(1, repeats + 1):
            for name, run in arms.items():
                bar.update(task, description=f"round {round_number}: {name}", advance=1)
                seconds[name].append(run())
    return seconds


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each."""
    return {name: importlib.metadata.version(name) for name in packages}


def hardware(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "processor": processor,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
    }
