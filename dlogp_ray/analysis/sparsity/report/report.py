"""The report of a sparsity analysis: its tables and examples, made into the page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dlogp_ray.analysis.sparsity.examples import Examples
from dlogp_ray.analysis.sparsity.groups import Group
from dlogp_ray.analysis.sparsity.headlines import headline_rows
from dlogp_ray.analysis.sparsity.report.charts import charts
from dlogp_ray.analysis.sparsity.report.page import MEASURES, Heading, Sample, page

MOST_SHIFTED = 15
"""Vocabulary ids of each group that the page lists."""
OFTEN_MOVED = 25
"""Vocabulary ids of each generator, those of which most tokens moved, that the page lists."""
PROMPT_LETTERS = 2_000
"""Of a prompt, that the page shows."""


def report(
    title: str,
    noise: str,
    footer: str,
    figures: pa.Table,
    by: Sequence[str],
    tables: Mapping[str, pa.Table],
    floors: Mapping[str, float],
    examples: Examples,
    surface: Callable[[int], str | None],
    most: int,
) -> str:
    """The page.

    Args:
        title: Of the run.
        noise: What its noise floor is.
        footer: What it was made from.
        figures: As ``sparsity_tables`` gives them.
        by: Columns that they are split by.
        tables: All tables, split by policy and generator alone.
        floors: Statistic -> a magnitude up to here is unresolved, nats; none for any other.
        examples: Rows to show.
        surface: How a vocabulary id looks.
        most: Responses to show.
    """
    below = {"Most shifted tokens": list(_shifted(tables["shifted"]))}
    if "training_moved" in tables:
        below["Tokens that moved first"] = list(first_movers(tables["training_moved"]))
    heading = Heading(
        title,
        # A line a figure: as wide as there are groups.
        list(zip(*headline_rows(figures, by), strict=True)),
        noise,
        below,
        _split_in_words(by),
        footer,
        floors,
    )
    return page(heading, charts(tables), list(_samples(examples.shown(most))), surface)


def _samples(rows: pa.Table) -> Iterator[Sample]:
    for row in rows.to_pylist():
        values = {
            measure.name: np.array(row[measure.name], dtype=np.float64)
            for measure in MEASURES
            if row.get(measure.name) is not None
        }
        yield Sample(
            id=row["sample_id"],
            group=str(Group(row["policy"], row["generator"])),
            right=_right(row),
            prompt=_prompt(row),
            token_ids=np.array(row["response_ids"], dtype=np.int32),
            counts=np.array(row["response_mask"], dtype=bool),
            values=values,
        )


def _prompt(row: Mapping[str, Any]) -> str | None:
    """The end of it, as people read it: no list of messages."""
    text = row.get("prompt")
    if not isinstance(text, str):
        return None
    return text if len(text) <= PROMPT_LETTERS else f"… {text[-PROMPT_LETTERS:]}"


def _right(row: Mapping[str, Any]) -> bool | None:
    """What the corpus says: ``correct``, or a reward of 1 or 0."""
    for name in ("correct", "reward"):
        if row.get(name) in (0, 1):
            return bool(row[name])
    return None


def _shifted(rows: pa.Table) -> Iterator[list[str]]:
    yield ["policy", "text of", "token", "id", "tokens", "Σ Δlog p", "of it above 0", "below 0"]
    listed: dict[tuple[str, str | None], int] = {}
    for row in rows.to_pylist():
        key = row["policy"], row["generator"]
        listed[key] = listed.get(key, 0) + 1
        if listed[key] <= MOST_SHIFTED:
            yield [
                row["policy"],
                row["generator"] or "unnamed",
                repr(row["token"]) if row["token"] is not None else "",
                str(row["token_id"]),
                f"{row['tokens']:,}",
                *(_nats(row[name]) for name in ("delta_logp_total", "raised", "lowered")),
            ]


def _nats(value: float) -> str:
    return f"{round(value, 1) + 0.0:+,.1f}"  # no −0.0


def _split_in_words(by: Sequence[str]) -> str:
    if not by:
        return ""
    return (
        f"Above, figures are split by {', '.join(by)} too; charts and responses are of each policy "
        "and generator as a whole."
    )


def first_movers(rows: pa.Table) -> Iterator[list[str]]:
    """Vocabulary ids by when their tokens had gone half of their way, the earliest first.

    Args:
        rows: Of the table ``training_moved``.
    """
    yield ["text of", "token", "id", "tokens that moved", "half way by step (mean)"]
    moved: dict[tuple[str | None, int, str | None], dict[int, int]] = {}
    for row in rows.to_pylist():
        key = row["generator"], row["token_id"], row["token"]
        moved.setdefault(key, {})[row["step"]] = row["tokens"]
    for generator in dict.fromkeys(key[0] for key in moved):
        mine = [(key, steps) for key, steps in moved.items() if key[0] == generator]
        often = sorted(mine, key=lambda one: -sum(one[1].values()))[:OFTEN_MOVED]
        for (_, token_id, token), steps in sorted(often, key=lambda one: _mean_step(one[1])):
            yield [
                generator or "unnamed",
                repr(token) if token is not None else "",
                str(token_id),
                f"{sum(steps.values()):,}",
                f"{_mean_step(steps):,.0f}",
            ]


def _mean_step(steps: Mapping[int, int]) -> float:
    return sum(step * tokens for step, tokens in steps.items()) / sum(steps.values())
