"""What the table of a demo's run shows: how much RL moved, which tokens, and where to ask on."""

import math
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlogp_ray.amounts import amount
from dlogp_ray.analysis.overview import overview
from dlogp_ray.analysis.summary import DELTA_THRESHOLDS, Summary
from dlogp_ray.config import SparsityConfig
from dlogp_ray.pipelines.score.result import ScoreResult
from dlogp_ray.pipelines.sparsity.result import REPORT
from dlogp_ray.pipelines.sparsity.sparsity import sparsity
from dlogp_ray.tables.run import Run, open_run

_SHOWN = 4
_PALETTE = {"raised": "bold black on green", "lowered": "bold white on red"}


def print_run(
    result: ScoreResult, tokenizer: Any, generators: tuple[str, str], console: Console
) -> None:
    """What a score run of both policies' texts says, and its report, once all of it is there.

    Args:
        result: The job's; its texts have the `prompt` carried along.
        tokenizer: Of the policies.
        generators: What the base and the RL policy are called as `generator`.
        console: Where to.
    """
    if not result.units_done:
        return
    run = open_run(result.run)
    console.print()
    print_thresholds(run, console)
    print_most_shifted(run, tokenizer, generators, console)
    if result.sealed:
        config = SparsityConfig(run=result.run)
        if config.name not in run.analyses():
            sparsity(config, progress=False)
        report = run.path(f"sparsity/{config.name}/{REPORT}")
        console.print(f"\nReport, for a browser: {report}", soft_wrap=True)


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


def print_most_shifted(
    run: Run, tokenizer: Any, generators: tuple[str, str], console: Console
) -> None:
    """The tokens that RL lowered most in the base's text, and raised most in its own."""
    base_text, rl_text = generators
    for direction, generator, order in (("lowered", base_text, "ASC"), ("raised", rl_text, "DESC")):
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
                f"  {tokenizer.decode([token])!r}: {amount(count, 'time')}, mean {mean:+.2f}, "
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
    quoted = shlex.quote(str(shown))
    console.print(
        f"\nTables: {run}/scores/*.parquet. Ask them:\n"
        f"  dlogp show {quoted}\n"
        f"  dlogp sparsity {quoted} --by reward --name by-reward\n"
        f"  dlogp reweight {quoted} --scheme delta\n"
        f'  dlogp query {quoted} "SELECT policy, avg(delta_logp) FROM tokens GROUP BY policy"\n',
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
