"""Tables in a trainer: one value a token by sample id, for exactly the tokens that were scored.

    weights = load_weights("s3://bucket/runs/my-run/weights/low_prob")
    weights.batch(sample_ids, response_ids, length)     # [B, T], float32
    load_logps("s3://bucket/runs/my-run", "base")       # the same of log-probabilities

A sample whose tokens are not those of the table is an error that names the sample and the position:
values are never shifted, cut or padded to fit.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from dlogp_ray.amounts import amount
from dlogp_ray.config import BASE
from dlogp_ray.errors import Refused, StoreFailed, Unanswered
from dlogp_ray.tables.info import ReweightInfo, RunInfo
from dlogp_ray.tables.kinds import SCORES
from dlogp_ray.tables.run import Run, open_run
from dlogp_ray.tables.source import source_hash
from dlogp_ray.tables.token_hash import token_hash
from dlogp_ray.weights import cache as on_disk

if TYPE_CHECKING:
    import torch

Missing = Literal["error", "one"]
"""What a sample gets that the table does not have: an error, or weights of 1."""
_NOT_TOKENS = "expected a list of token ids for each sample; give padded ones with a mask"


class WrongTokens(Refused):
    """The tokens of a sample are not those of the table.

    Attributes:
        sample_id: The sample.
        position: The first token that differs, from 0; None where only the lengths do.
    """

    def __init__(self, sample_id: str, position: int | None, what: str) -> None:
        """Say what differs, and what to do."""
        self.sample_id, self.position = sample_id, position
        super().__init__(
            f"sample {sample_id}: {what}. Its text was generated, cut or tokenised anew since it "
            "was scored: score what you train on, and make the table of that"
        )


class UnknownSample(Refused):
    """The table has no values for a sample."""


@dataclass(frozen=True)
class PerToken:
    """One value a token, by sample id: weights, or log-probabilities.

    It is small, and can be sent to other processes, such as the workers of a ``DataLoader``: each
    maps the same files.

    Attributes:
        uri: Of the table.
        column: Which of its columns.
        policy: Whose values they are: π_old of weights, the scored policy of log-probabilities.
        absent: The value of samples that it does not have, where that is asked for.
        info: The table's record: of weights ``policy``, ``run``, and ``fingerprint`` with schemes
            and parameters.
        folder: Where its arrays are on this machine.
    """

    uri: str
    column: str
    policy: str
    absent: float
    info: RunInfo
    folder: Path

    def __len__(self) -> int:
        """Samples that have values."""
        return len(self._arrays["rows"])

    def __iter__(self) -> Iterator[str]:
        """The ids of its samples, in the table's order."""
        return (on_disk.sample_name(self.folder, row) for row in range(len(self)))

    def __contains__(self, sample_id: str | int) -> bool:
        """Whether a sample has values."""
        return self._row(sample_id) is not None

    def __getitem__(self, sample_id: str | int) -> tuple[np.ndarray, np.ndarray]:
        """Response ids [t] (int32) and values [t] (float32) of a sample.

        Raises:
            UnknownSample: It has none.
        """
        row = self._row(sample_id)
        if row is None:
            raise self._unknown(sample_id)
        start, stop = self._arrays["offsets"][row : row + 2]
        return self._arrays["ids"][start:stop], self._arrays["values"][start:stop]

    def of(
        self,
        sample_ids: Sequence[str | int],
        response_ids: Sequence[Any],
        *,
        prompt_ids: Sequence[Any] | None = None,
        missing: Missing = "error",
    ) -> list[np.ndarray]:
        """The values of each sample's tokens, float32, an array a sample.

        Args:
            sample_ids: Of B samples.
            response_ids: Their response tokens without padding: lists, arrays or tensors.
            prompt_ids: Their prompts, to be checked too; None of a sample checks nothing.
            missing: What samples get that the table does not have.

        Raises:
            UnknownSample: The table has no values for one.
            WrongTokens: The tokens of one are not those of the table.
        """
        values, lengths = self._flat(sample_ids, response_ids, prompt_ids, missing)
        return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []

    def batch(
        self,
        sample_ids: Sequence[str | int],
        response_ids: Any,
        length: int,
        *,
        mask: Any = None,
        prompt_ids: Sequence[Any] | None = None,
        missing: Missing = "error",
    ) -> "torch.Tensor":
        """Values of a batch, right-padded with 0: [B, T], float32, on the CPU.

        Args:
            sample_ids: Of B samples.
            response_ids: Their response tokens: B of any length without padding, or one tensor
                [B, T] with a ``mask``.
            length: T, at least the longest.
            mask: [B, T], 1 where ``response_ids`` is a token of the response and not padding.
            prompt_ids: B prompts without padding, to be checked too.
            missing: What samples get that the table does not have.

        Raises:
            UnknownSample: The table has no values for one.
            WrongTokens: The tokens of one are not those of the table.
            ValueError: A response is longer than T, or numbers don't agree.
        """
        import torch

        if mask is not None:
            padded, there = _rectangle(response_ids, length), _rectangle(mask, length) != 0
            if padded.shape != there.shape:
                raise ValueError(
                    f"expected response_ids and mask of one shape, got {padded.shape} and "
                    f"{there.shape}"
                )
            response_ids = [ids[own] for ids, own in zip(padded, there, strict=True)]
        values, lengths = self._flat(sample_ids, response_ids, prompt_ids, missing)
        if len(lengths) and lengths.max() > length:
            at = int(lengths.argmax())
            raise ValueError(
                f"sample {sample_ids[at]}: its response has {amount(lengths[at], 'token')}, and "
                f"length is {length}"
            )
        out = np.zeros((len(lengths), length), np.float32)
        where = np.arange(length) < lengths[:, None] if mask is None else there
        out[where] = values
        return torch.from_numpy(out)

    def expected_temperature(self, temperature: float, whose: str) -> None:
        """Refuse log-probabilities at another temperature than that of ``whose`` loss.

        Raises:
            Refused: They are at another one.
        """
        scored_at = self.info.config.temperature
        if scored_at != temperature:
            raise Refused(
                f"{self.uri} was scored at temperature {scored_at:g}, and {whose} is "
                f"{temperature:g}: score it under another run_id with temperature: {temperature:g}"
            )

    def sums(
        self,
        sample_ids: Sequence[str | int],
        response_ids: Sequence[Any],
        *,
        prompt_ids: Sequence[Any] | None = None,
    ) -> np.ndarray:
        """The sum over each sample's tokens, float64: of log-probabilities, that of the response.

        Raises:
            UnknownSample: The table has no values for one.
            WrongTokens: The tokens of one are not those of the table.
        """
        values = self.of(sample_ids, response_ids, prompt_ids=prompt_ids)
        return np.array([row.sum(dtype=np.float64) for row in values])

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        return {name: on_disk.mapped(self.folder, name) for name in on_disk.ARRAYS}

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps, which another process opens for itself."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As it was; the maps are opened when they are needed."""
        self.__dict__.update(state)

    def expected(self, kind: Literal["weights", "log-probabilities"]) -> "PerToken":
        """Itself, where it is of that kind.

        Raises:
            Refused: It is of the other one: a loss would be multiplied by log-probabilities.
        """
        if (self.column == "loss_weights") != (kind == "weights"):
            how = "load_weights" if kind == "weights" else "load_logps"
            raise Refused(
                f"expected {kind}, as {how} opens them, got the column {self.column} of {self.uri}"
            )
        return self

    def _row(self, sample_id: str | int) -> int | None:
        (row,) = self._found([str(sample_id)])
        return None if row < 0 else int(row)

    def _found(self, sample_ids: Sequence[str]) -> np.ndarray:
        """The row of each sample; -1 of those that are not there."""
        hashes, order = self._arrays["hashes"], self._arrays["rows"]
        names, ends = memoryview(self._arrays["names"]), self._arrays["ends"]
        encoded = [name.encode() for name in sample_ids]
        wanted = np.array([on_disk.name_hash(name) for name in encoded], dtype=hashes.dtype)
        # In their own order each search finds its pages in the cache: 0.35 for 0.55 ms of 512.
        ascending = np.argsort(wanted)
        place = np.empty(len(wanted), np.int64)
        place[ascending] = np.searchsorted(hashes, wanted[ascending])
        rows = np.full(len(wanted), -1, np.int64)
        left = np.arange(len(wanted))
        # Where several ids have one hash, the next place is tried.
        while len(left := left[place[left] < len(hashes)]):
            left = left[hashes[place[left]] == wanted[left]]
            tried = order[place[left]]
            starts, stops = ends[tried].tolist(), ends[tried + 1].tolist()
            same = [
                names[start:stop] == encoded[index]
                for index, start, stop in zip(left.tolist(), starts, stops, strict=True)
            ]
            right = np.array(same, dtype=bool)
            rows[left[right]] = tried[right]
            left = left[~right]
            place[left] += 1
        return rows

    def _flat(
        self,
        sample_ids: Sequence[str | int],
        response_ids: Any,
        prompt_ids: Sequence[Any] | None,
        missing: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The values of all tokens one after another, and how many each sample has."""
        if isinstance(sample_ids, str):
            raise ValueError(f"expected a list of sample ids, got a text: {sample_ids!r}")
        if len(sample_ids) != len(response_ids):
            raise ValueError(f"got {len(sample_ids)} sample ids for {len(response_ids)} responses")
        names = [str(sample_id) for sample_id in sample_ids]
        if missing not in get_args(Missing):
            raise ValueError(f"missing: expected {' or '.join(get_args(Missing))}, got {missing!r}")
        rows = self._found(names)
        if missing == "error" and len(rows) and rows.min() < 0:
            raise self._unknown(names[int(rows.argmin())])
        flat, lengths = _flattened(response_ids)
        values = self._checked(names, rows, flat, lengths)
        if prompt_ids is not None:
            self._check_prompts(names, rows, prompt_ids)
        return values, lengths

    def _check_prompts(
        self, sample_ids: Sequence[str], rows: np.ndarray, prompt_ids: Sequence[Any]
    ) -> None:
        if len(prompt_ids) != len(sample_ids):
            raise ValueError(f"got {len(sample_ids)} sample ids for {len(prompt_ids)} prompts")
        for name, row, prompt in zip(sample_ids, rows.tolist(), prompt_ids, strict=True):
            if row < 0 or prompt is None:
                continue
            theirs = self._arrays["prompts"][16 * row : 16 * row + 16].tobytes().hex()
            mine = token_hash(_array(prompt))
            if mine != theirs:
                raise WrongTokens(
                    name,
                    None,
                    f"its prompt of {amount(len(prompt), 'token')} has the hash {mine}, and the "
                    f"one that was scored {theirs}",
                )

    def _checked(
        self, sample_ids: Sequence[str], rows: np.ndarray, flat: np.ndarray, lengths: np.ndarray
    ) -> np.ndarray:
        """The values of all tokens, one after another; ``absent`` where a sample is not there."""
        offsets = self._arrays["offsets"]
        starts, known = offsets[np.maximum(rows, 0)], rows >= 0
        theirs = offsets[np.maximum(rows, 0) + 1] - starts if len(rows) else lengths
        if (wrong := known & (theirs != lengths)).any():
            at = int(wrong.argmax())
            raise self._wrong_length(sample_ids[at], int(rows[at]), flat, lengths, at)
        values: np.ndarray
        begins = np.cumsum(lengths) - lengths
        token = np.repeat(starts - begins, lengths) + np.arange(len(flat))
        if known.all():
            ids, values = self._arrays["ids"][token], self._arrays["values"][token]
        else:
            there = np.repeat(known, lengths)
            ids, values = flat.copy(), np.full(len(flat), self.absent, np.float32)
            ids[there] = self._arrays["ids"][token[there]]
            values[there] = self._arrays["values"][token[there]]
        if (differs := ids != flat).any():
            first = int(differs.argmax())
            at = int(np.searchsorted(begins + lengths, first, side="right"))
            place = first - int(begins[at])
            mine = flat[begins[at] : begins[at] + lengths[at]]
            other = ids[begins[at] : begins[at] + lengths[at]]
            raise WrongTokens(
                sample_ids[at],
                place,
                f"token {place} of its response is {flat[first]}, and the table was made for "
                f"{ids[first]} (token hash {token_hash(mine)}, the table's {token_hash(other)})",
            )
        return values

    def _wrong_length(
        self, sample_id: str, row: int, flat: np.ndarray, lengths: np.ndarray, at: int
    ) -> WrongTokens:
        begin = int(lengths[:at].sum())
        mine = flat[begin : begin + int(lengths[at])]
        start, stop = self._arrays["offsets"][row : row + 2]
        other = self._arrays["ids"][start:stop]
        short = min(len(mine), len(other))
        differs = np.flatnonzero(mine[:short] != other[:short])
        position = int(differs[0]) if len(differs) else None
        where = f"they differ from token {position} on" if len(differs) else "the rest is the same"
        return WrongTokens(
            sample_id,
            position,
            f"its response has {amount(len(mine), 'token')}, and the table was made for "
            f"{len(other)}; {where}",
        )

    def _unknown(self, sample_id: str | int) -> UnknownSample:
        hint = ", and with missing='one' such samples weigh 1" if self.absent else ""
        return UnknownSample(
            f"{self.uri} has no {self.column} for sample {sample_id}; `dlogp show {self.uri}` says "
            f"which rows have none and why{hint}"
        )


def load_weights(uri: str | Path, *, cache: str | Path | None = None) -> PerToken:
    """Open a weights table for a trainer.

    Its tokens and weights are written once into a folder of this machine (8 bytes a token) and
    mapped from there; other processes and later runs find them.

    Args:
        uri: Folder or URL of the table: ``<output>/<run_id>/weights/<name>``.
        cache: Where such folders are (default: ``DLOGP_CACHE`` or ``~/.cache/dlogp_ray``).

    Raises:
        Refused: There is no such table, it is not sealed, or the scores that it was made from have
            changed since.
        Damaged: An object is missing or can't be read.
    """
    table = open_run(str(uri))
    if not isinstance(table.info, ReweightInfo):
        raise Refused(
            f"{uri} is a run of {table.kind.table}; give a weights table, <run>/weights/<name>, as "
            "`dlogp reweight` makes it"
        )
    if not table.sealed:
        raise Refused(
            f"weights table {uri} is not whole ({len(table.committed())} of {table.planned} "
            "objects); the same `dlogp reweight` makes the rest"
        )
    _check_fresh(table, table.info)
    return _opened(table, table.info.policy, "loss_weights", 1.0, cache)


def load_logps(uri: str | Path, policy: str, *, cache: str | Path | None = None) -> PerToken:
    """Open the log-probabilities of one policy in a scores run, as references of a trainer.

    Args:
        uri: Folder or URL of the run: ``<output>/<run_id>``.
        policy: Which of the scored policies, such as ``base``.
        cache: As for ``load_weights``.

    Raises:
        Refused: There is no such run or policy, or it is not sealed.
        Damaged: An object is missing or can't be read.
    """
    run = open_run(str(uri))
    if run.kind is not SCORES or not run.sealed:
        what = "is not sealed" if run.kind is SCORES else f"is of {run.kind.table}"
        raise Refused(f"{uri} {what}; give a scores run that `dlogp score` has ended")
    scored, compared = run.info.config.policies, run.info.compared
    if policy not in scored:
        raise Refused(f"run {uri} scored {', '.join(scored)}, and not {policy}")
    if policy == BASE:
        return _opened(run, BASE, "logp_base", 0.0, cache, rows_of=compared[0])
    return _opened(run, policy, "logp_rl", 0.0, cache)


def _opened(
    table: Run,
    name: str,
    column: str,
    absent: float,
    cache: str | Path | None,
    rows_of: str | None = None,
) -> PerToken:
    table.objects()
    where = on_disk.default_folder() if cache is None else Path(cache).expanduser()
    folder = on_disk.cached(table, rows_of or name, column, source_hash(table), where)
    return PerToken(table.uri, column, name, absent, table.info, folder)


def _check_fresh(table: Run, info: ReweightInfo) -> None:
    """Refuse weights of scores that are others now: those around it, else those it was made of."""
    around, _, _ = table.uri.rpartition("/weights/")
    for place in (around, info.run):
        try:
            run = open_run(place)
        except (
            Refused,
            StoreFailed,
            Unanswered,
            OSError,
        ):  # elsewhere now, or out of this machine's reach
            continue
        if not run.sealed or source_hash(run) != info.fingerprint["scores"]:
            raise Refused(
                f"weights table {table.uri} is stale: the scores of {run.uri} have changed since "
                "it was made; make it again with `dlogp reweight` under another --name"
            )
        return


def _flattened(responses: Any) -> tuple[np.ndarray, np.ndarray]:
    """All tokens one after another, and how many each response has."""
    if all(isinstance(ids, list) for ids in responses):  # in half the time of an array for each
        counts = np.fromiter(map(len, responses), np.int64, len(responses))
        try:
            every = itertools.chain.from_iterable(responses)
            return np.fromiter(every, np.int32, int(counts.sum())), counts
        except (TypeError, ValueError, OverflowError):
            raise ValueError(_NOT_TOKENS) from None
    arrays = [_array(ids) for ids in responses]
    if any(array.ndim != 1 for array in arrays):
        raise ValueError(_NOT_TOKENS)
    lengths = np.array([len(array) for array in arrays], np.int64)
    # An empty list is an array of floats.
    flat = np.concatenate([np.zeros(0, np.int32), *(array for array in arrays if len(array))])
    tokens = flat.astype(np.int32, copy=False)
    if flat.dtype.kind not in "iu" or not np.array_equal(tokens, flat):
        raise ValueError(_NOT_TOKENS)
    return tokens, lengths


def _rectangle(values: Any, length: int) -> np.ndarray:
    try:
        array = _array(values)
        got = f"the shape {array.shape}"
    except ValueError:
        array, got = np.zeros(0), "rows of several lengths"
    if array.ndim != 2 or array.shape[1] != length:
        raise ValueError(f"expected response_ids and mask [B, {length}], got {got}")
    return array


def _array(values: Any) -> np.ndarray:
    """A list, array or tensor, wherever it is."""
    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)
