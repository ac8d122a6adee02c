"""A few rows from all over the corpus: whether any is fit, and texts for the noise floor."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice, zip_longest

import numpy as np
import pyarrow as pa

from dlogp_ray.amounts import amount
from dlogp_ray.corpus.units import Unit, Units
from dlogp_ray.errors import DlogpError, Refused
from dlogp_ray.pipelines.score.job import ScoreJob
from dlogp_ray.pipelines.score.stages import checked_rows, raw_rows
from dlogp_ray.policies.packing import TokenSequence, count_tokens
from dlogp_ray.status import Status
from dlogp_ray.tables.places import place

UNITS = 8
"""From how many units texts are taken."""
TEXTS = 64
"""How many texts, at most."""
_WHY = ["status", "error", "source_file", "source_offset"]
_LEAST_TEXTS = 8
"""Long responses are cut, so that a sample is not one or two texts alone..."""
_LEAST_RESPONSE_TOKENS = 256
"""... but not to less than this, however long their prompts are."""


def sample_units(units: Units) -> list[Unit]:
    """Units to take texts from, spread evenly over the corpus."""
    count = min(UNITS, len(units))
    return [units[index * len(units) // count] for index in range(count)]


def check_some_fit(job: ScoreJob, units: Units) -> None:
    """Refuse a corpus in which no row is fit, as far as a few units from all over it show.

    A unit is read until a row is fit, which the first one is as a rule.

    Raises:
        Refused: All rows of these units would be rejected, and that is more than ``max_rejected``.
    """
    counts = Counter[str]()
    first: dict[str, str] = {}
    sampled = sample_units(units)
    for unit in sampled:
        try:
            raw = raw_rows(unit, job)
            while rows := checked_rows(islice(raw, TEXTS), unit.file, unit.source, job):
                if Status.OK in rows["status"].to_pylist():
                    return
                for row in rows.select(_WHY).to_pylist():
                    counts[row["status"]] += 1
                    if counts[row["status"]] == 1:
                        at = place(row["source_file"], row["source_offset"])
                        first[row["status"]] = f"{at}: {row['error']}"
        except (DlogpError, OSError, pa.ArrowException):
            return  # the unit's own reading meets it again, and records it
    if not counts and any(entry.where or entry.sample for entry in job.config.entries):
        raise Refused(
            f"corpus: where and sample choose no row, of {len(sampled)} of {len(units):,} units; "
            "correct them"
        )
    if counts.total() * len(job.config.compared) > job.config.max_rejected:
        what = f"corpus: no row is fit to be scored, of {amount(counts.total(), 'row')}"
        if len(sampled) < len(units):
            what += f" in {len(sampled)} of {len(units):,} units"
        told = [f"{count:,} {status}: {first[status]}" for status, count in counts.items()]
        remedy = "Correct them, or what the job says of them"
        raise Refused("\n  ".join([f"{what}. {remedy}:", *told]))


def sample_texts(job: ScoreJob, units: Sequence[Unit], tokens: int) -> list[TokenSequence]:
    """The first texts of each unit, in turn, that the corpus checks let through.

    Args:
        job: How rows are read and checked.
        units: Where to take them from.
        tokens: Prompt and response tokens at which to stop.

    Returns:
        At most ``TEXTS``; none if no row is fit.
    """
    by_unit = [_first_texts(job, unit, -(-TEXTS // len(units))) for unit in units]
    share, left = tokens // _LEAST_TEXTS, tokens
    texts: list[TokenSequence] = []
    for text in chain.from_iterable(zip_longest(*by_unit)):
        if text is None:
            continue
        if left <= 0 or len(texts) == TEXTS:
            break
        room = max(_LEAST_RESPONSE_TOKENS, share - len(text.prompt_ids))
        texts.append(text._replace(response_ids=text.response_ids[:room]))
        left -= count_tokens(texts[-1:])
    return texts


def _first_texts(job: ScoreJob, unit: Unit, rows: int) -> list[TokenSequence]:
    if unit.format == "parquet":
        unit = replace(unit, stop=min(unit.stop, unit.start + rows))
    try:
        table = checked_rows(islice(raw_rows(unit, job), rows), unit.file, unit.source, job)
    except Exception:  # noqa: BLE001  (the unit's own reading meets it again, and records it)
        return []
    return [
        TokenSequence(
            np.asarray(row["prompt_ids"], dtype=np.int32),
            np.asarray(row["response_ids"], dtype=np.int32),
        )
        for row in table.select(["status", "prompt_ids", "response_ids"]).to_pylist()
        if row["status"] == Status.OK
    ]
