"""Rows of a scores object -> rows of the weights table.

NumPy alone: every process that weighs imports this, and torch would take seconds and 300 MB.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int, Shaped

from dlogp_ray.amounts import amount
from dlogp_ray.config import BASE, AnyScheme
from dlogp_ray.config.schemes import OfWhole
from dlogp_ray.errors import Refused
from dlogp_ray.status import Status
from dlogp_ray.tables.weights import WEIGHTS_SCHEMA, WeightsSummary
from dlogp_ray.weights import schemes as pure
from dlogp_ray.weights.applying import SchemeInputs, Whole, undefined, weigh
from dlogp_ray.weights.whole import Counts, GroupSums

_IDENTITY = ("sample_id", "group_id", "generator", "status", "error", "token_hash", "prompt_hash")
_BLOCK_TOKENS = 2**17
"""Of texts, with their padding, that are weighed at a time: the temporaries are some MB."""


@dataclass(frozen=True)
class Weighing:
    """What is weighed by what.

    Attributes:
        schemes: Their weights are multiplied.
        policy: π_old.
        rl: The compared policy whose rows are taken.
        others: Generators that are not π_old: their texts get no weights.
        mean_one: Divide by the mean over each text.
        temperature: At which the texts were scored.
    """

    schemes: tuple[AnyScheme, ...]
    policy: str
    rl: str
    others: tuple[str, ...] = ()
    mean_one: bool = False
    temperature: float = 1.0

    @property
    def of_whole(self) -> set[OfWhole | None]:
        """What schemes need of more than one text."""
        return {scheme.of_whole for scheme in self.schemes}

    @property
    def columns(self) -> dict[str, str]:
        """What schemes look at -> the column of the scores table that it is.

        The current policy is the compared one.
        """
        old = "base" if self.policy == BASE else "rl"
        names = {
            "logp_old": f"logp_{old}",
            "entropy_old": f"entropy_{old}",
            "logp_current": "logp_rl",
            "delta_logp": "delta_logp",
        }
        wanted = {need for scheme in self.schemes for need in scheme.needs}
        return {role: column for role, column in names.items() if role in wanted}

    @property
    def read(self) -> list[str]:
        """Columns of the scores table that are looked at."""
        flat = ("policy", "reward", "temperature", "response_ids", "response_mask")
        return [*_IDENTITY, *flat, *self.columns.values()]


@dataclass(frozen=True)
class WholeTable:
    """What schemes need of all rows.

    Attributes:
        threshold: The entropy from which ``entropy_top`` keeps a token.
        log_ppl: Of texts by group, for ``ppl``.
        reward: Of texts by group, for the sign of advantages.
    """

    threshold: float | None = None
    log_ppl: GroupSums | None = None
    reward: GroupSums | None = None


@dataclass(frozen=True)
class Rows:
    """A scores object's rows that are weighed, with their tokens one after another.

    Shapes: n rows, t tokens.

    Attributes:
        table: All rows of the compared policy, with their new ``status``.
        ok: [n] which of them have weights; the rest of the attributes are of these.
        lengths: Tokens of each.
        mask: [t] which tokens count.
        values: What schemes look at -> [t].
    """

    table: pa.Table
    ok: Bool[np.ndarray, " n"]
    lengths: Int[np.ndarray, " r"]
    mask: Bool[np.ndarray, " t"]
    values: Mapping[str, Float[np.ndarray, " t"]]

    @classmethod
    def of(cls, table: pa.Table, weighing: Weighing) -> "Rows":
        """The rows of an object.

        Raises:
            Refused: A column that a scheme needs was not computed.
        """
        table = _only_of(table.filter(pc.equal(table["policy"], weighing.rl)), weighing)
        ok = table["status"].to_numpy() == Status.OK
        some = table.filter(pa.array(ok))
        lengths = pc.list_value_length(some["response_ids"]).to_numpy().astype(np.int64)
        mask = _flat(some["response_mask"]).astype(bool)
        values = {role: _flat(some[column]) for role, column in weighing.columns.items()}
        for role, column in weighing.columns.items():
            if len(values[role]) != len(mask):
                raise Refused(
                    f"the scores have no {column} for {amount(len(mask), 'token')}, only for "
                    f"{len(values[role]):,}: score again with statistics: all"
                )
        return cls(table, ok, lengths, mask, values)

    @property
    def some(self) -> pa.Table:
        """The rows that have weights."""
        return self.table.filter(pa.array(self.ok))

    @property
    def groups(self) -> pa.Array:
        """A name for the prompt of each text: its group, or the hash of the prompt itself."""
        some = self.some
        named = pc.coalesce(some["group_id"], some["prompt_hash"])
        return named.combine_chunks().cast(pa.string())

    @property
    def rewards(self) -> Float[np.ndarray, " r"]:
        """Of each text.

        Raises:
            Refused: One has none.
        """
        some = self.some
        if some["reward"].null_count:
            sample = some.filter(pc.is_null(some["reward"]))["sample_id"][0]
            raise Refused(
                f"future_kl leaves out tokens of texts whose reward is below their group's mean, "
                f"and sample {sample} has no reward; score a corpus with rewards, or set max_ratio "
                "to none"
            )
        rewards: np.ndarray = some["reward"].to_numpy().astype(np.float64)
        return rewards

    @property
    def log_ppl(self) -> Float[np.ndarray, " r"]:
        """Of each text, as ``schemes.log_ppl``."""
        log_ppl = np.zeros(len(self.lengths), np.float32)
        for index, texts in self.blocks():
            log_ppl[index] = pure.log_ppl(texts.logp_old, texts.mask)
        return log_ppl

    def entropies(self) -> Float[np.ndarray, " c"]:
        """Of π_old, of the tokens that count."""
        entropies: np.ndarray = self.values["entropy_old"][self.mask]
        return entropies

    def blocks(self) -> Iterator[tuple[Int[np.ndarray, " b"], SchemeInputs]]:
        """The texts, padded, those of one length together.

        Yields:
            Which of the texts with weights, and what schemes look at.
        """
        starts = np.cumsum(self.lengths) - self.lengths
        order = np.argsort(self.lengths, kind="stable")
        at = 0
        while at < len(order):
            # As many as fit with the length of the longest, which is the last.
            fits = np.arange(1, len(order) - at + 1) * self.lengths[order[at:]] <= _BLOCK_TOKENS
            count = max(1, int(fits.sum()))
            index = order[at : at + count]
            at += count
            length = int(self.lengths[index[-1]])
            place = np.arange(length)
            there = place < self.lengths[index][:, None]
            token = np.where(there, starts[index][:, None] + place, 0)
            picked = {role: _padded(flat, token, there) for role, flat in self.values.items()}
            yield index, SchemeInputs(mask=_padded(self.mask, token, there), **picked)


def first_pass(rows: Rows, weighing: Weighing) -> tuple[Counts, GroupSums, GroupSums]:
    """What adds up before anything is weighed: entropies, log PPL and rewards by group."""
    signed = any("advantages" in scheme.needs for scheme in weighing.schemes)
    return (
        Counts.of(rows.entropies()) if "threshold" in weighing.of_whole else Counts.merge([]),
        _perplexities(rows) if "moments" in weighing.of_whole else GroupSums.merge([]),
        GroupSums.of(rows.groups, rows.rewards) if signed else GroupSums.merge([]),
    )


def _perplexities(rows: Rows) -> GroupSums:
    """Of the texts that have tokens: the others have no perplexity."""
    text = np.repeat(np.arange(len(rows.lengths)), rows.lengths)
    not_empty = np.bincount(text[rows.mask], minlength=len(rows.lengths)) > 0
    return GroupSums.of(rows.groups.filter(pa.array(not_empty)), rows.log_ppl[not_empty])


def weigh_rows(
    rows: Rows, weighing: Weighing, whole: WholeTable
) -> tuple[pa.Table, WeightsSummary]:
    """The weights table's rows of an object, by ``tables.weights.WEIGHTS_SCHEMA``."""
    weights = np.ones(int(rows.lengths.sum()), np.float32)
    starts = np.cumsum(rows.lengths) - rows.lengths
    per_text = _per_text(rows, weighing, whole)
    nowhere = 0
    for index, texts in rows.blocks():
        of = {scheme: _whole_of(scheme, whole, per_text, index) for scheme in weighing.schemes}
        if "advantages" in per_text:
            texts = SchemeInputs(**{**vars(texts), "advantages": per_text["advantages"][index]})
        if "mean" in per_text:  # only that there are groups: their moments are at hand
            texts = SchemeInputs(**{**vars(texts), "groups": index})
        padded = weigh(weighing.schemes, texts, of, mean_one=weighing.mean_one)
        nowhere += sum(undefined(scheme, texts, of[scheme]) for scheme in weighing.schemes)
        lengths = rows.lengths[index]
        there = np.arange(padded.shape[1]) < lengths[:, None]
        token = starts[index][:, None] + np.arange(padded.shape[1])
        weights[token[there]] = padded[there]
    return _table(rows, weighing, weights), _summary(rows, weighing, weights, nowhere)


def _per_text(
    rows: Rows, weighing: Weighing, whole: WholeTable
) -> dict[str, Shaped[np.ndarray, " r"]]:
    of_whole: dict[str, np.ndarray] = {}
    if "moments" in weighing.of_whole and whole.log_ppl:
        of_whole["mean"], of_whole["std"] = whole.log_ppl.moments(rows.groups)
    if any("advantages" in scheme.needs for scheme in weighing.schemes) and whole.reward:
        mean, _ = whole.reward.moments(rows.groups)
        of_whole["advantages"] = rows.rewards - mean
    return of_whole


def _whole_of(
    scheme: AnyScheme,
    whole: WholeTable,
    per_text: Mapping[str, Shaped[np.ndarray, " r"]],
    index: Int[np.ndarray, " b"],
) -> Whole:
    if scheme.of_whole == "moments":
        return Whole(mean=per_text["mean"][index], std=per_text["std"][index])
    return Whole(threshold=whole.threshold)


def _only_of(table: pa.Table, weighing: Weighing) -> pa.Table:
    """Rows that another policy has written get no weights."""
    others = pa.array(weighing.others, pa.string())
    other = pc.and_(
        pc.is_in(table["generator"], value_set=others), pc.equal(table["status"], Status.OK)
    )
    told = pc.binary_join_element_wise(
        "written by ", table["generator"], f", and π_old is {weighing.policy}", ""
    )
    columns = {
        "status": pc.if_else(other, Status.OTHER_GENERATOR, table["status"]),
        "error": pc.if_else(other, told, table["error"]),
    }
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def _table(rows: Rows, weighing: Weighing, weights: Float[np.ndarray, " t"]) -> pa.Table:
    columns: dict[str, Any] = {name: rows.table[name] for name in _IDENTITY}
    columns["policy"] = pa.array([weighing.policy] * len(rows.table))
    at = np.flatnonzero(rows.ok)
    for name, values in _summaries(rows, weights).items():
        column = np.full(len(rows.table), np.nan, np.float32)
        column[at] = values
        columns[name] = pa.array(column, from_pandas=True)  # null where there are none
    lengths = np.zeros(len(rows.table), np.int64)
    lengths[at] = rows.lengths
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    ids = _flat(rows.some["response_ids"]).astype(np.int32)
    columns["response_ids"] = pa.ListArray.from_arrays(offsets, pa.array(ids))
    columns["loss_weights"] = pa.ListArray.from_arrays(offsets, pa.array(weights))
    return pa.table({name: columns[name] for name in WEIGHTS_SCHEMA.names}).cast(WEIGHTS_SCHEMA)


def _summaries(rows: Rows, weights: Float[np.ndarray, " t"]) -> dict[str, Float[np.ndarray, " r"]]:
    """Of each text's tokens that count; nan without any."""
    text = np.repeat(np.arange(len(rows.lengths)), rows.lengths)[rows.mask]
    counted = weights[rows.mask]
    n = len(rows.lengths)
    tokens = np.bincount(text, minlength=n)
    least, greatest = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(least, text, counted)
    np.maximum.at(greatest, text, counted)
    with np.errstate(invalid="ignore"):
        return {
            "weight_min": np.where(tokens > 0, least, np.nan),
            "weight_mean": np.bincount(text, counted, n) / tokens,
            "weight_max": np.where(tokens > 0, greatest, np.nan),
            "share_changed": np.bincount(text, counted != 1, n) / tokens,
        }


def _summary(
    rows: Rows, weighing: Weighing, weights: Float[np.ndarray, " t"], nowhere: int
) -> WeightsSummary:
    counted = weights[rows.mask]
    scored_at = pa.scalar(weighing.temperature, pa.float32())
    other = pc.sum(pc.not_equal(rows.some["temperature"], scored_at)).as_py()
    status = rows.table["status"].value_counts().to_pylist()
    return WeightsSummary(
        status={count["values"]: count["counts"] for count in status},
        tokens=len(counted),
        changed=int((counted != 1).sum()),
        total=float(counted.sum(dtype=np.float64)),
        undefined=nowhere,
        other_temperature=other or 0,  # none says, or there is no row
        least=float(counted.min()) if len(counted) else None,
        greatest=float(counted.max()) if len(counted) else None,
    )


def _flat(column: pa.ChunkedArray) -> Shaped[np.ndarray, " t"]:
    flat: np.ndarray = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat


def _padded(
    flat: Shaped[np.ndarray, " t"],
    token: Int[np.ndarray, "b l"],
    there: Bool[np.ndarray, "b l"],
) -> Shaped[np.ndarray, "b l"]:
    picked = flat[token] if len(flat) else np.zeros(token.shape, flat.dtype)
    return np.where(there, picked, np.zeros((), flat.dtype))
