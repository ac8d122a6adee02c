"""A sparsity analysis in the words of llama.cpp's ``perplexity --kl-divergence``.

Its KLD is KL(base ‖ Q), Q the other model; its Δp is Q's probability of the token that is there,
less the base's. Unlike llama.cpp's, errors are clustered by sample, and percentiles have them too.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

Figures = Mapping[tuple[str, str, float | None], tuple[float, float]]
"""Figure -> its value and standard error, NaN where there is none."""

_HIGH, _LOW = (0.999, 0.99, 0.95, 0.9), (0.1, 0.05, 0.01, 0.001)


def llama_cpp_lines(figures: pa.Table, by: Sequence[str]) -> Iterator[str]:
    """A block of lines for each group.

    Args:
        figures: As ``sparsity_tables`` gives them.
        by: Columns that they are split by.
    """
    groups: dict[tuple[str, ...], dict[tuple[str, str, float | None], tuple[float, float]]] = {}
    for row in figures.to_pylist():
        split = (f"{name} {row[name]}" for name in by)
        names = [row["policy"], row["generator"] or "unnamed", *split]
        key = row["statistic"], row["figure"], row["x"]
        if row["value"] is not None:
            se = math.nan if row["se"] is None else row["se"]
            groups.setdefault(tuple(names), {})[key] = (row["value"], se)
    for group, values in groups.items():
        yield f"{group[1]}'s text under {', '.join((group[0], *group[2:]))}"
        yield ""
        yield "====== Perplexity statistics ======"
        yield from _perplexity(values)
        yield ""
        if ("kl_base_rl", "mean", None) in values:
            yield "====== KL divergence statistics ======"
            yield from _distribution("KLD", "kl_base_rl", (*_HIGH, 0.5, *_LOW), values)
            yield ""
        yield "====== Token probability statistics ======"
        yield from _distribution("Δp", "delta_p", (*_HIGH, 0.75, 0.5, 0.25, *_LOW), values)
        square, error = values["delta_p_squared", "mean", None]
        rms = math.sqrt(square)
        # Of a square root: half of the square's error over the root.
        yield f"RMS Δp    : {_percent(rms, error / (2 * rms) if rms else math.nan)}"
        if ("top1_agree", "mean", None) in values:
            yield f"Same top p: {_percent(*values['top1_agree', 'mean', None])}"
        yield ""


def _perplexity(figures: Figures) -> Iterator[str]:
    """PPL = exp(−mean log p); errors to the first order in those of the means."""
    base, base_se = figures["logp_base", "mean", None]
    rl, rl_se = figures["logp_rl", "mean", None]
    delta, delta_se = figures["delta_logp", "mean", None]
    ppl, base_ppl, ratio = math.exp(-rl), math.exp(-base), math.exp(-delta)
    # Δ is the difference of the two, so that its error says what they have in common.
    covariance = (rl_se**2 + base_se**2 - delta_se**2) / 2
    apart = (ppl * rl_se) ** 2 + (base_ppl * base_se) ** 2 - 2 * ppl * base_ppl * covariance
    yield _line("Mean PPL(Q)", ppl, ppl * rl_se)
    yield _line("Mean PPL(base)", base_ppl, base_ppl * base_se)
    if rl_se * base_se > 0:
        yield f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * covariance / (rl_se * base_se):6.2f}%"
    yield _line("Mean ln(PPL(Q)/PPL(base))", -delta, delta_se)
    yield _line("Mean PPL(Q)/PPL(base)", ratio, ratio * delta_se)
    yield _line("Mean PPL(Q)-PPL(base)", ppl - base_ppl, math.sqrt(max(0.0, apart)))


def _distribution(
    name: str, statistic: str, shares: Sequence[float], figures: Figures
) -> Iterator[str]:
    form = _percent if name == "Δp" else _plain
    yield f"Mean    {name}: {form(*figures[statistic, 'mean', None])}"
    yield f"Maximum {name}: {form(*figures[statistic, 'quantile', 1.0])}"
    for share in shares:
        label = "Median" if share == 0.5 else f"{100 * share:4.1f}%"
        yield f"{label:7} {name}: {form(*figures[statistic, 'quantile', share])}"
    yield f"Minimum {name}: {form(*figures[statistic, 'quantile', 0.0])}"


def _line(label: str, value: float, error: float) -> str:
    return f"{label:30}: {_plain(value, error)}"


def _plain(value: float, error: float) -> str:
    return f"{value:10.6f}" + ("" if math.isnan(error) else f" ± {error:10.6f}")


def _percent(value: float, error: float) -> str:
    return f"{100 * value:6.3f}" + ("" if math.isnan(error) else f" ± {100 * error:5.3f}") + " %"
