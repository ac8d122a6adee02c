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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.bench.texts import make_groups, make_texts
from dlogp_ray.bench.whole import MATMUL_SIZE, MATMULS
from dlogp_ray.bench.workers import Peer, Workers, check_peer
from dlogp_ray.config import BenchConfig
from dlogp_ray.config.bench import ARMS
from dlogp_ray.errors import Refused
from dlogp_ray.policies.packing import TokenSequence, count_tokens

RATIOS = {
    "pair / vllm_twice": ("pair", "vllm_twice"),
    "pair / lm_eval_twice": ("pair", "lm_eval_twice"),
    "pair / naive_logp_twice": ("pair", "naive_logp_twice"),
    "pair / naive_statistics": ("pair", "naive_statistics"),
    "groups_shared / groups_unshared": ("groups_shared", "groups_unshared"),
    "pair / vllm_twice, on groups": ("groups_shared", "vllm_groups_twice"),
}
PEERS = {
    "vllm_twice": ("vllm", "texts"),
    "lm_eval_twice": ("lm_eval", "texts"),
    "vllm_groups_twice": ("vllm", "groups"),
}
"""Arms of other engines: which, and over what."""
NAIVE = ("naive_logp_twice", "naive_statistics")
NAIVE_S = 60.0
"""What one round of a naive arm may take: on as many texts as that allows."""
WARM = (*NAIVE, *PEERS, "matmul")
"""Arms without a round that is not counted: they compile nothing, or have made a pass."""
_WHOLE = ("matmul", "heads")
"""Arms that have their whole work in any pass, on however few texts."""
_FEW = 8
"""Texts of the trial that says how long all will take; what the naive arms take at a time."""
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
    pythons = _pythons(config)
    device = _device()
    several = f"{config.processes} processes" if config.processes > 1 else "a process"
    _say(f"loading both policies in {several}, a minute or so", progress)
    workers = Workers(config, device)
    peers: dict[str, Peer] = {}
    try:
        facts = workers.facts[0]
        vocabulary = min(facts["vocabulary"].values())
        made = {
            "texts": make_texts(config, vocabulary),
            "groups": make_groups(config, vocabulary),
        }
        ids = {
            name: [(t.prompt_ids.tolist(), t.response_ids.tolist()) for t in texts]
            for name, texts in made.items()
            if texts
        }
        threads, dtype = config.threads * config.processes, facts["dtype"]["base"]
        for name, python in pythons.items():
            _say(f"starting {name}, which takes minutes", progress)
            peers[name] = Peer(name, python, config.base, dtype, ids, threads)
        arms: dict[str, Arm] = {}
        for name in (*config.chosen, "matmul"):
            if name in PEERS:
                engine, over = PEERS[name]
                arms[name] = Arm(
                    partial(peers[engine].run_twice, over), made[over], len(made[over])
                )
            else:
                over = "groups" if name.startswith("groups") else "texts"
                arms[name] = Arm(partial(workers.run, name), made[over], len(made[over]))
        _plan(arms, config.repeats, progress)
        seconds = _measure(arms, config.repeats, progress)
        last = workers.ask("facts")
        _say("measuring the noise floor, half a minute or so", progress)
        noise = workers.ask("noise")[0]
    finally:
        workers.close()
        for peer in peers.values():
            peer.close()
    tokens = {name: arm.tokens for name, arm in arms.items()}
    peak = [MATMULS[device] * 2 * MATMUL_SIZE**3 / s for s in seconds["matmul"]]
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
        "tokens": count_tokens(made["texts"]),
        "texts": {name: arm.count for name, arm in arms.items() if name != "matmul"},
        "tokens_per_s": {
            name: _spread([tokens[name] / s for s in seconds[name]]) for name in config.chosen
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
        | _share_of_statistics(seconds),
        "matmul_peak_flops_per_s": _spread(peak),
        "share_of_matmul_peak": _spread(
            [flops / s / p for s, p in zip(seconds["pair"], peak, strict=True)]
        )
        if "pair" in seconds
        else None,
        "padding_share": facts["padding_share"],
        "peak_memory_bytes": max(fact["peak_memory_bytes"] for fact in last),
        "noise_floor": noise,
    }


def _pythons(config: BenchConfig) -> dict[str, str]:
    """Engine -> its Python, of those with an arm among the chosen; each looked at, not started."""
    given = {"vllm": config.vllm_python, "lm_eval": config.lm_eval_python}
    names = dict.fromkeys(PEERS[arm][0] for arm in config.chosen if arm in PEERS)
    found = {name: python for name in names if (python := given[name]) is not None}
    for name, python in found.items():
        check_peer(name, python)
    return found


def _share_of_statistics(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    if not {"pair", "bodies_and_bare_heads"} <= seconds.keys():
        return {}
    both = zip(seconds["pair"], seconds["bodies_and_bare_heads"], strict=True)
    return {"statistics' share over bodies and bare heads": _spread([a / b - 1 for a, b in both])}


@dataclass
class Arm:
    """What is measured.

    Attributes:
        run: Over so many of the first texts, or all; gives seconds.
        texts: All that there are for it.
        count: How many it is measured on.
    """

    run: Callable[[int | None], float]
    texts: Sequence[TokenSequence]
    count: int

    @property
    def tokens(self) -> int:
        """Of the texts that it is measured on."""
        return count_tokens(self.texts[: self.count])

    def measure(self) -> float:
        """Seconds over its texts."""
        return self.run(None if self.count == len(self.texts) else self.count)


def _plan(arms: dict[str, Arm], repeats: int, progress: bool) -> None:
    """Try all on a few texts, cut the naive ones to what a minute allows, say how long it takes.

    What the first pass of an arm pays for (compiling) is in no figure: it comes before.
    """
    _say(
        "trying every arm on a few texts; what is compiled is compiled now, a minute or so",
        progress,
    )
    estimates: dict[str, float] = {}
    for name, arm in arms.items():
        few = min(_FEW, len(arm.texts))
        arm.run(few)
        token_s = arm.run(few) / count_tokens(arm.texts[:few])
        if name in NAIVE:
            arm.count = _fitting(arm.texts, token_s)
        estimates[name] = token_s * (
            count_tokens(arm.texts[:few]) if name in _WHOLE else arm.tokens
        )
        label = "matmul (this machine's peak)" if name == "matmul" else name
        _say(f"  {label}: {_about(estimates[name])} a round", progress)
    passes = {name: repeats + (name not in WARM) for name in arms}
    seconds = sum(estimates[name] * passes[name] for name in arms)
    cut = [f"{name} on {arm.count}" for name, arm in arms.items() if arm.count < len(arm.texts)]
    fewer = f" ({', '.join(cut)} of them, which take a minute)" if cut else ""
    texts = max(len(arm.texts) for arm in arms.values())
    what = f"{repeats} rounds of {len(arms)} arms on {texts} texts{fewer}"
    _say(f"{what}: {_about(seconds)}, and then the noise floor", progress)


def _about(seconds: float) -> str:
    if seconds < 120:
        return f"about {seconds:,.1f} s" if seconds < 10 else f"about {seconds:,.0f} s"
    return f"about {seconds / 60:,.0f} minutes"


def _fitting(texts: Sequence[TokenSequence], token_s: float) -> int:
    """How many of the first texts take at most ``NAIVE_S``; one batch at least."""
    count = len(texts)
    while count > _FEW and count_tokens(texts[:count]) * token_s > NAIVE_S:
        count -= _FEW
    return max(1, count)


def _say(what: str, progress: bool) -> None:
    if progress:
        Console(stderr=True).print(what, highlight=False, soft_wrap=True)


def print_bench(result: dict[str, Any], console: Console) -> None:
    """Text for people."""
    table = Table(box=None)
    for column in ("", "tokens/s", "lowest", "highest"):
        table.add_column(column, justify="left" if not column else "right")
    for name, spread in result["tokens_per_s"].items():
        table.add_row(ARMS[name], *(f"{spread[k]:,.0f}" for k in ("median", "min", "max")))
    print_whole(table, console)
    table = Table(box=None)
    for column in ("ratio, within a round", "median", "lowest", "highest"):
        table.add_column(column, justify="right" if table.columns else "left")
    for name, spread in result["ratios"].items():
        table.add_row(name, *(f"{spread[k]:.2f}" for k in ("median", "min", "max")))
    print_whole(table, console)
    engine = result["engine"]
    memory, peak = result["peak_memory_bytes"] / 2**20, result["matmul_peak_flops_per_s"]["median"]
    share = result["share_of_matmul_peak"]
    share = f"{share['median']:.0%} of " if share else ""
    console.print(
        f"{engine['dtype']['base']}, {'compiled' if engine['compiled'] else 'eager'}, "
        f"{engine['token_budget']:,} tokens a pass; "
        f"{share}{peak / 1e9:,.0f} GFLOP/s; "
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


def _measure(arms: dict[str, Arm], repeats: int, progress: bool) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        warm_up = [name for name in arms if name not in WARM]
        task = bar.add_task("", total=len(warm_up) + len(arms) * repeats)
        for name in warm_up:  # compiles, and fills caches
            bar.update(task, description=f"warm-up: {name}", advance=1)
            arms[name].measure()
        for round_number in range(1, repeats + 1):
            for name, arm in arms.items():
                bar.update(task, description=f"round {round_number}: {name}", advance=1)
                seconds[name].append(arm.measure())
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
