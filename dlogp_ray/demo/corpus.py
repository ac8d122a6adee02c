"""The corpus of a demo: one response of each policy to each problem."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dlogp_ray import store
from dlogp_ray.demo.processes import pool_of
from dlogp_ray.errors import Refused


def check_problems(asked: int, there: int) -> None:
    """Check that a task holds out as many problems as are asked for.

    Raises:
        Refused: It holds out fewer.
    """
    if asked > there:
        raise Refused(f"problems: expected at most {there:,}, which the task has, got {asked:,}")


def make_corpus(
    path: Path,
    generators: Sequence[str],
    sample: Callable[[str], list[dict[str, Any]]],
    console: Console,
) -> None:
    """Sample the policies, each in a process of its own, unless the file is there already.

    Args:
        path: JSON lines, all of them or nothing.
        generators: The policies' names.
        sample: Name -> rows, in another process.
        console: Is told how many of each policy's responses are right.
    """
    if path.exists():
        console.print(f"corpus: {path} (there already)")
        return
    started = time.monotonic()
    with pool_of(len(generators)) as pool:
        sampled = dict(zip(generators, pool.map(sample, generators), strict=True))
    rows = [row for of_one in sampled.values() for row in of_one]
    store.create(str(path), "".join(json.dumps(row) + "\n" for row in rows).encode())
    for name, of_one in sampled.items():
        right = sum(row["reward"] for row in of_one) / len(of_one)
        console.print(f"{name}: {len(of_one):,} responses, {right:.1%} correct", highlight=False)
    seconds = time.monotonic() - started
    console.print(f"corpus: {path}, sampled in {seconds:.0f} s\n", highlight=False)
