"""A run's noise floor: what its table shows where nothing has changed, as ``run.json`` records it.

It is measured before the job, by ``scoring.noise``, and holds for the whole run. Of three parts,
the largest is what a change has to exceed.
"""

from collections.abc import Iterable, Iterator, Mapping

from pydantic import BaseModel, ConfigDict

_NO_BIT = "other batches change no bit of log p"
_MEANING = (
    "Base against base is what a policy that did not change shows; other batches, what scoring the "
    "same texts in other passes changes; rounding, what the policies' dtype changes against "
    "float32 of the same weights. The largest counts: none of them moves Δlog p of more than 1 % "
    "of the tokens by more, and what lies below it is unresolved, not zero."
)


class Spread(BaseModel):
    """How far two columns lie apart that would be equal if nothing were rounded.

    Attributes:
        rms: Root mean square of the difference.
        p99: 99th percentile of its absolute value: at most 1 % of the tokens lie above.
    """

    model_config = ConfigDict(frozen=True)

    rms: float
    p99: float


Spreads = dict[str, dict[str, Spread]]
"""Policy -> column of the table -> its spread."""


class Rounding(BaseModel):
    """What the policies' dtypes change: the table against that of the same weights in float32.

    Attributes:
        texts: Texts of the sample that there was time for; 0 where all is float32.
        tokens: Their response tokens, which are compared.
        spreads: Of each policy that has rows; none where all is float32.
        problem: Why it could not be measured; None where it was.
    """

    model_config = ConfigDict(frozen=True)

    texts: int = 0
    tokens: int = 0
    spreads: Spreads = {}
    problem: str | None = None


class NoiseFloor(BaseModel):
    """What is rounded, and what composing batches another way changes, on a sample of the corpus.

    Attributes:
        texts: Texts of the sample.
        tokens: Their response tokens, which are compared.
        rebatched: Policy -> column of the table -> its spread between the two compositions.
        changed: Policy -> column of ids, ranks or agreement -> share of tokens that changed.
        base_against_base: Column of a pair -> its spread where the base under the one composition
            is compared with the base under the other. Empty for a policy alone.
        rounding: What the policies' dtypes change; None where a run was made before that was
            measured.
    """

    model_config = ConfigDict(frozen=True)

    texts: int
    tokens: int
    rebatched: Spreads
    changed: dict[str, dict[str, float]]
    base_against_base: dict[str, Spread]
    rounding: Rounding | None = None

    @property
    def unresolved_nats(self) -> float | None:
        """A |Δlog p| below it is unresolved, not zero; None for a policy alone."""
        return self.floors.get("delta_logp")

    @property
    def floors(self) -> dict[str, float]:
        """Statistic -> what is unresolved up to here, in its own unit (nats).

        The largest 99th percentile of all parts and policies.
        """
        rounding = self.rounding.spreads if self.rounding else {}
        by_column: dict[str, float] = {}
        for columns in (*self.rebatched.values(), self.base_against_base, *rounding.values()):
            for name, spread in columns.items():
                by_column[name] = max(spread.p99, by_column.get(name, 0.0))
        return by_column

    @property
    def lacks(self) -> str | None:
        """What the floors leave out, for people; None where all three parts are in them."""
        if self.rounding is None:
            return "rounding not measured"
        return self.rounding.problem and f"rounding not measured: {self.rounding.problem}"

    def in_words(self) -> str:
        """The floor, its parts, and what they are."""
        return f"Noise floor: {' '.join(self.as_row())}. {_MEANING}"

    def as_row(self) -> tuple[str, str]:
        """A heading and its figure, for people: the floor and each of its parts."""
        pair = self.unresolved_nats is not None
        columns = ("delta_logp",) if pair else ("logp_base", "logp_rl")
        other = list(_of(columns, self.rebatched.values()))
        same = list(_of(columns, [self.base_against_base]))
        rounded = list(_of(columns, self.rounding.spreads.values() if self.rounding else []))
        heading = "unresolved" if pair else "repeatable"
        moved = any(spread.rms for spread in (*other, *same))
        if not moved and not any(spread.rms for spread in rounded) and not self.lacks:
            nothing = "nothing" if pair else "exactly"
            return heading, f"{nothing}: {_NO_BIT} ({self.tokens:,} tokens)"
        floor = f"{'below' if pair else 'within'} {_largest((*other, *same, *rounded))} nats"
        batches = f"{_NO_BIT}, {self.tokens:,} tokens"
        if moved:
            named = {"base against base": same, "other batches": other}
            parts = [f"{name} {_largest(spreads)}" for name, spreads in named.items() if spreads]
            batches = f"99 % of {self.tokens:,} tokens: {', '.join(parts)}"
        rounding = self.lacks or "all in float32"
        if rounded and self.rounding:
            rounding = f"rounding {_largest(rounded)}, {self.rounding.tokens:,} tokens"
        return heading, f"{floor} ({batches}; {rounding})"


def _of(columns: Iterable[str], policies: Iterable[Mapping[str, Spread]]) -> Iterator[Spread]:
    return (of[name] for of in policies for name in columns if name in of)


def _largest(spreads: Iterable[Spread]) -> str:
    return f"{max(spread.p99 for spread in spreads):.2g}"
