"""A run's noise floor: what its table shows where nothing has changed, as ``run.json`` records it.

It is measured before the job, by ``scoring.noise``, and holds for the whole run.
"""

from pydantic import BaseModel, ConfigDict

_NO_BIT = "other batches change no bit of log p"


class Spread(BaseModel):
    """How far two columns lie apart that would be equal if nothing were rounded.

    Attributes:
        rms: Root mean square of the difference.
        p99: 99th percentile of its absolute value: at most 1 % of the tokens lie above.
    """

    model_config = ConfigDict(frozen=True)

    rms: float
    p99: float


class NoiseFloor(BaseModel):
    """What composing batches another way changes, on a sample of the corpus.

    Attributes:
        texts: Texts of the sample.
        tokens: Their response tokens, which are compared.
        rebatched: Policy -> column of the table -> its spread between the two compositions.
        changed: Policy -> column of ids, ranks or agreement -> share of tokens that changed.
        base_against_base: Column of a pair -> its spread where the base under the one composition
            is compared with the base under the other. Empty for a policy alone.
    """

    model_config = ConfigDict(frozen=True)

    texts: int
    tokens: int
    rebatched: dict[str, dict[str, Spread]]
    changed: dict[str, dict[str, float]]
    base_against_base: dict[str, Spread]

    @property
    def unresolved_nats(self) -> float | None:
        """A |Δlog p| below it is unresolved, not zero; None for a policy alone."""
        delta = self.base_against_base.get("delta_logp")
        return None if delta is None else delta.p99

    @property
    def floors(self) -> dict[str, float]:
        """Statistic -> what is unresolved up to here, in its own unit (nats).

        Of a pair's statistics base against base; of others, such as entropies, what other batches
        change, the largest of all policies.
        """
        found: dict[str, float] = {}
        for columns in self.rebatched.values():
            for name, spread in columns.items():
                found[name] = max(spread.p99, found.get(name, 0.0))
        return found | {name: spread.p99 for name, spread in self.base_against_base.items()}

    def as_row(self) -> tuple[str, str]:
        """A heading and its figure, for people."""
        if self.unresolved_nats is not None:
            if not self.base_against_base["delta_logp"].rms:
                return "unresolved", f"nothing: {_NO_BIT} ({self.tokens:,} tokens)"
            figure = f"below {self.unresolved_nats:.2g} nats"
            return "unresolved", f"{figure} (99 % of base against base, {self.tokens:,} tokens)"
        spreads = [
            spread
            for columns in self.rebatched.values()
            for name, spread in columns.items()
            if name in ("logp_base", "logp_rl")
        ]
        if not any(spread.rms for spread in spreads):
            return "repeatable", f"exactly: {_NO_BIT} ({self.tokens:,} tokens)"
        largest = max(spread.p99 for spread in spreads)
        return (
            "repeatable",
            f"within {largest:.2g} nats (99 % of log p in other batches, {self.tokens:,} tokens)",
        )
