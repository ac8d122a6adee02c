"""`dlogp demo`: the main job on the embedded pair, and what its table shows.

Both policies answer held-out additions; both sets of responses are scored by both policies through
the real job; the table then says at which tokens, and in which direction, RL changed the policy,
and a report shows it.
"""

import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer

from dlogp_ray import store
from dlogp_ray.analysis.overview import overview
from dlogp_ray.analysis.summary import DELTA_THRESHOLDS, Summary
from dlogp_ray.config import BASE, ScoreConfig, SparsityConfig
from dlogp_ray.demo.pair import BASE_NAME, accuracies, checkpoint_path, rl_name
from dlogp_ray.pipelines.result import print_result
from dlogp_ray.pipelines.score import score
from dlogp_ray.pipelines.sparsity import REPORT, sparsity
from dlogp_ray.tables.run import Run, open_run

SEED = 0
UNIT_TOKENS = 12_000
"""About a second of one actor here; small, so that the demo shows many units."""
_SHOWN = 4
_PALETTE = {"raised": "bold black on green", "lowered": "bold white on red"}


def run_demo(output: Path, problems: int) -> int:
    """Sample, score, print.

    Args:
        output: Folder for the corpus and the run; the same one again does what is missing.
        problems: Held-out problems, each answered once by each policy.

    Returns:
        The score job's exit code.
    """
    console = Console()
    names = (BASE_NAME, rl_name())
    corpus = output / f"corpus-{problems}.jsonl"
    if corpus.exists():
        console.print(f"corpus: {corpus} (there already)")
    else:
        started = time.monotonic()
        rows = _sample(names, problems)
        store.create(str(corpus), "".join(json.dumps(row) + "\n" for row in rows).encode())
        for name in names:
            mine = [row for row in rows if row["generator"] == name]
            correct = sum(row["reward"] for row in mine) / len(mine)
            console.print(
                f"{name}: {len(mine):,} responses, {correct:.1%} correct", highlight=False
            )
        seconds = time.monotonic() - started
        console.print(f"corpus: {corpus}, sampled in {seconds:.0f} s\n", highlight=False)

    step = accuracies()["checkpoints"][rl_name()]["step"]
    job = ScoreConfig.from_mapping(
        {
            "corpus": str(corpus),
            "policies": {
                BASE: str(checkpoint_path(BASE_NAME)),
                "rl": {"path": str(checkpoint_path(rl_name())), "step": step},
            },
            "output": str(output),
            "run_id": f"demo-{problems}",
            "carry": {"prompt": "string"},
            "unit_tokens": UNIT_TOKENS,
        }
    )
    result = score(job)
    print_result(result, console)
    if result.units_done:
        run = open_run(result.run)
        console.print()
        print_thresholds(run, console)
        print_most_shifted(run, console)
        if result.sealed:
            config = SparsityConfig(run=result.run)
            if config.name not in run.analyses():
                sparsity(config, progress=False)
            report = run.path(f"sparsity/{config.name}/{REPORT}")
            console.print(f"\nReport, for a browser: {report}", soft_wrap=True)
        print_queries(result.run, console)
    console.print(json.dumps(result.as_json()), highlight=False, soft_wrap=True)
    return result.exit_code


def _sample(names: tuple[str, ...], problems: int) -> list[dict[str, Any]]:
    """One response of each policy to each problem, each policy in a process of its own."""
    with ProcessPoolExecutor(len(names), mp_context=get_context("spawn")) as pool:
        sampled = pool.map(_sample_one, names, [problems] * len(names))
        return [row for rows in sampled for row in rows]


def _sample_one(name: str, problems: int) -> list[dict[str, Any]]:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from dlogp_ray.demo.sampling import sample_corpus
    from dlogp_ray.demo.task import held_out_problems

    disable_progress_bar()
    torch.set_num_threads(1)
    chosen = held_out_problems(problems, SEED)
    return sample_corpus(checkpoint_path(name), chosen, samples_per_problem=1, seed=SEED)


def print_thresholds(run: Run, console: Console) -> None:
    """Share of tokens whose |Δlog p| is above each threshold, by who wrote the text."""
    console.print("Tokens that RL moved: share with |Δlog p| above a threshold (nats)")
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("text by", no_wrap=True)
    for heading in ("tokens", "mean Δ", *(f">{t:g}" for t in DELTA_THRESHOLDS)):
        table.add_column(heading, justify="right", no_wrap=True)
    summary = overview(run).summary
    assert isinstance(summary, Summary)
    for generator, group in summary.groups["rl"].items():
        shares = [f"{count / group.tokens:.1%}" for count in group.delta_above]
        mean = f"{group.delta_sum / group.tokens:+.3f}"
        table.add_row(generator, f"{group.tokens:,}", mean, *shares)
    console.print(table, highlight=False)


def print_most_shifted(run: Run, console: Console) -> None:
    """The tokens that RL lowered most in the base's text, and raised most in its own."""
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint_path(BASE_NAME))
    for direction, generator, order in (
        ("lowered", BASE_NAME, "ASC"),
        ("raised", rl_name(), "DESC"),
    ):
        kinds = run.sql(
            f"""
            SELECT token_id, count(*), avg(delta_logp), sum(delta_logp) AS total FROM tokens
            WHERE generator = '{generator}' GROUP BY token_id ORDER BY total {order}
            LIMIT {_SHOWN}
            """
        ).fetchall()
        # One token a response, so that one odd response does not fill the list.
        places = run.sql(
            f"""
            WITH ranked AS (
                SELECT sample_id, "position", delta_logp, logp_base, logp_rl FROM tokens
                WHERE generator = '{generator}'
                QUALIFY row_number() OVER (PARTITION BY sample_id ORDER BY delta_logp {order}) = 1
                ORDER BY delta_logp {order}, sample_id LIMIT {_SHOWN}
            )
            SELECT ranked.*, prompt, response_ids, reward FROM ranked JOIN scores USING (sample_id)
            ORDER BY delta_logp {order}, sample_id
            """
        ).fetchall()
        console.print(f"\nMost {direction} in text by {generator}", highlight=False)
        for token, count, mean, total in kinds:
            console.print(
                f"  {tokenizer.decode([token])!r}: {count:,} times, mean {mean:+.2f}, "
                f"in all {total:+,.0f} nats",
                highlight=False,
                markup=False,
            )
        for _, position, delta, base, rl, prompt, ids, reward in places:
            line = Text(f"  {delta:+7.2f}  p {math.exp(base):.3f} -> {math.exp(rl):.3f}  {prompt}")
            line.append(tokenizer.decode(ids[:position]))
            line.append(f"[{tokenizer.decode(ids[position])}]", style=_PALETTE[direction])
            line.append(tokenizer.decode(ids[position + 1 :], skip_special_tokens=True))
            line.append("  right" if reward else "  wrong", style="dim")
            console.print(line, soft_wrap=True)


def print_queries(run: str, console: Console) -> None:
    """Where the tables are, and how to ask them."""
    shown = Path(run)
    shown = shown.relative_to(Path.cwd()) if shown.is_relative_to(Path.cwd()) else shown
    console.print(
        f"\nTables: {run}/scores/*.parquet. Ask them:\n"
        f"  dlogp show {shown}\n"
        f"  dlogp sparsity {shown} --by reward --name by-reward\n"
        f"  dlogp reweight {shown} --scheme delta\n"
        f'  dlogp query {shown} "SELECT policy, avg(delta_logp) FROM tokens GROUP BY policy"\n',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
