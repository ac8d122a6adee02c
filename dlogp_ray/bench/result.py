"""Result of a benchmark: speeds with their spread, ratios within a round, shares of the peak."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dlogp_ray.analysis.printing import print_whole
from dlogp_ray.config.bench import ARMS

RATIOS = {
    "pair / vllm_twice": ("pair", "vllm_twice"),
    "pair / lm_eval_twice": ("pair", "lm_eval_twice"),
    "pair / naive_logp_twice": ("pair", "naive_logp_twice"),
    "pair / naive_statistics": ("pair", "naive_statistics"),
    "groups_shared / groups_unshared": ("groups_shared", "groups_unshared"),
    "pair / vllm_twice, on groups": ("groups_shared", "vllm_groups_twice"),
}


def ratios_of(
    seconds: Mapping[str, Sequence[float]], tokens: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    """Ratios of speeds, each within a round.

    Args:
        seconds: Arm -> of each round.
        tokens: Arm -> of its texts.
    """
    speeds = {name: [tokens[name] / s for s in rounds] for name, rounds in seconds.items()}
    ratios = {
        label: spread([a / b for a, b in zip(speeds[above], speeds[below], strict=True)])
        for label, (above, below) in RATIOS.items()
        if above in speeds and below in speeds
    }
    return ratios | _share_of_statistics(seconds)


def _share_of_statistics(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    if not {"pair", "bodies_and_bare_heads"} <= seconds.keys():
        return {}
    both = zip(seconds["pair"], seconds["bodies_and_bare_heads"], strict=True)
    return {"statistics' share over bodies and bare heads": spread([a / b - 1 for a, b in both])}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def print_bench(result: dict[str, Any], console: Console) -> None:
    """Text for people."""
    table = Table(box=None)
    for column in ("", "tokens/s", "lowest", "highest"):
        table.add_column(column, justify="left" if not column else "right")
    for name, spread in result["tokens_per_s"].items():
        table.add_row(ARMS[name], *(f"{spread[k]:,.0f}" for k in ("median", "min", "max")))
    print_whole(table, console)
    if result["ratios"]:
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
