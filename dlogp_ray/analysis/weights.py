"""What is in a weights table, for people."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from dlogp_ray.amounts import amount
from dlogp_ray.status import Status
from dlogp_ray.tables.weights import WeightsSummary


def schemes_line(schemes: Iterable[Mapping[str, Any]]) -> str:
    """Schemes with their parameters: ``low_prob(alpha=0.2) × delta(beta=1.0)``."""
    return " × ".join(
        f"{scheme['scheme']}({', '.join(f'{k}={v}' for k, v in scheme.items() if k != 'scheme')})"
        for scheme in schemes
    )


def weights_facts(summary: WeightsSummary) -> Table:
    """Its counts, a line each."""
    facts = [("samples with weights", f"{summary.status.get(Status.OK, 0):,}")]
    facts += [
        (f"without: {status}", f"{count:,}")
        for status, count in sorted(summary.status.items())
        if status != Status.OK
    ]
    facts.append(("tokens", f"{summary.tokens:,}"))
    if summary.mean is not None:
        facts.append(("weight is not 1", f"{summary.changed / summary.tokens:.2%} of the tokens"))
        span = f"{summary.least:.4g} to {summary.greatest:.4g}, mean {summary.mean:.4g}"
        facts.append(("weights", span))
    if summary.undefined:
        facts.append(("not defined, so 1", amount(summary.undefined, "token")))
    if summary.other_temperature:
        facts.append(("scored at another temperature", amount(summary.other_temperature, "sample")))
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts:
        table.add_row(name, value)
    return table
