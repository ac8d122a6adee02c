"""The words of llama.cpp, with figures from plain NumPy."""

import re

import numpy as np
import pytest
from score_tables import score_rows

from dlogp_ray.analysis.sparsity.groups import grouped
from dlogp_ray.analysis.sparsity.llama_cpp import llama_cpp_lines
from dlogp_ray.analysis.sparsity.tables import sparsity_tables

# What llama.cpp itself prints, with figures put in. Its errors are of independent tokens, and it
# gives percentiles none.
LLAMA_CPP = """
====== Perplexity statistics ======
Mean PPL(Q)                   :   6.407115 ±   0.039119
Mean PPL(base)                :   6.231633 ±   0.037716
Cor(ln(PPL(Q)), ln(PPL(base))):  99.34%
Mean ln(PPL(Q)/PPL(base))     :   0.027772 ±   0.000723
Mean PPL(Q)/PPL(base)         :   1.028160 ±   0.000723
Mean PPL(Q)-PPL(base)         :   0.175482 ±   0.004620

====== KL divergence statistics ======
Mean    KLD:   0.031273 ±   0.000238
Maximum KLD:   5.911021
99.9%   KLD:   1.834118
99.0%   KLD:   0.412901
95.0%   KLD:   0.118233
90.0%   KLD:   0.066712
Median  KLD:   0.011044
10.0%   KLD:   0.000312
 5.0%   KLD:   0.000105
 1.0%   KLD:   0.000011
 0.1%   KLD:  -0.000002
Minimum KLD:  -0.000011

====== Token probability statistics ======
Mean    Δp: -0.596 ± 0.014 %
Maximum Δp: 95.054%
99.9%   Δp: 27.084%
99.0%   Δp: 12.084%
95.0%   Δp:  4.911%
90.0%   Δp:  2.534%
75.0%   Δp:  0.402%
Median  Δp: -0.024%
25.0%   Δp: -0.611%
10.0%   Δp: -3.101%
 5.0%   Δp: -6.201%
 1.0%   Δp: -19.567%
 0.1%   Δp: -56.054%
Minimum Δp: -98.699%
RMS Δp    :  5.519 ± 0.050 %
Same top p: 91.901 ± 0.072 %
"""


def read(lines: list[str]) -> dict[str, tuple[float, float | None]]:
    """Label -> its figure, and error."""
    found = {}
    for line in lines:
        if match := re.match(r"(.+?) *: *(-?[\d.]+)(?: ?%)?(?: ± +([\d.]+))?", line):
            found[match[1]] = (float(match[2]), None if match[3] is None else float(match[3]))
    return found


@pytest.fixture(scope="module")
def flat() -> dict[str, np.ndarray]:
    rows = score_rows(300, masked=0.0)
    names = ("kl_base_rl", "logp_base", "logp_rl", "delta_logp", "top1_agree")
    found = {
        name: rows[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(float)
        for name in names
    }
    return found | {"lengths": np.array([len(row) for row in rows["js"].to_pylist()])}


@pytest.fixture(scope="module")
def lines() -> list[str]:
    found = grouped(score_rows(300, masked=0.0), [], {})
    figures = sparsity_tables(found, (), {}, lambda token: None)["figures"]
    return list(llama_cpp_lines(figures, ()))


def test_the_lines_are_llama_cpp_s(lines: list[str]) -> None:
    assert lines[0] == "base's text under rl"

    def labels(some: list[str]) -> list[str]:
        return [line.partition(": ")[0] for line in some]

    assert labels("\n".join(lines[1:]).strip().split("\n")) == labels(LLAMA_CPP.strip().split("\n"))


def test_figures_are_numpy_s(lines: list[str], flat: dict[str, np.ndarray]) -> None:
    found = read(lines)
    delta_p = np.exp(flat["logp_rl"]) - np.exp(flat["logp_base"])
    ppl, base = np.exp(-flat["logp_rl"].mean()), np.exp(-flat["logp_base"].mean())
    expected = {
        "Mean PPL(Q)": ppl,
        "Mean PPL(base)": base,
        "Mean ln(PPL(Q)/PPL(base))": np.log(ppl / base),
        "Mean PPL(Q)/PPL(base)": ppl / base,
        "Mean PPL(Q)-PPL(base)": ppl - base,
        "Mean    KLD": flat["kl_base_rl"].mean(),
        "Maximum KLD": flat["kl_base_rl"].max(),
        "Minimum KLD": flat["kl_base_rl"].min(),
    }
    for label, value in expected.items():
        assert found[label][0] == pytest.approx(value, abs=1e-6), label  # six decimals are printed
    in_percent = {
        "Mean    Δp": delta_p.mean(),
        "Maximum Δp": delta_p.max(),
        "Minimum Δp": delta_p.min(),
        "RMS Δp": np.sqrt((delta_p**2).mean()),
        "Same top p": flat["top1_agree"].mean(),
    }
    for label, value in in_percent.items():
        assert found[label][0] == pytest.approx(100 * value, abs=1e-3), label  # three are
    exact = np.quantile(flat["kl_base_rl"], 0.95, method="inverted_cdf")
    assert found["95.0%   KLD"][0] == pytest.approx(exact, rel=2**-8, abs=1e-6)
    for label, (_, error) in found.items():
        extreme = any(word in label for word in ("Maximum", "Minimum", "Cor("))
        assert (error is None) == extreme, label


def test_errors_of_perplexities_are_those_of_samples_left_out(
    lines: list[str], flat: dict[str, np.ndarray]
) -> None:
    """Against the jackknife over samples, which needs no derivative: equal to the first order."""
    ends = np.cumsum(flat["lengths"])
    sums = {
        name: np.add.reduceat(flat[name], ends - flat["lengths"])
        for name in ("logp_base", "logp_rl")
    }
    n = flat["lengths"]

    def without(name: str) -> np.ndarray:
        return -(sums[name].sum() - sums[name]) / (n.sum() - n)

    base, rl = without("logp_base"), without("logp_rl")
    left_out = {
        "Mean PPL(Q)": np.exp(rl),
        "Mean PPL(base)": np.exp(base),
        "Mean ln(PPL(Q)/PPL(base))": rl - base,
        "Mean PPL(Q)/PPL(base)": np.exp(rl - base),
        "Mean PPL(Q)-PPL(base)": np.exp(rl) - np.exp(base),
    }
    found = read(lines)
    for label, values in left_out.items():
        se = np.sqrt((len(n) - 1) * values.var())
        assert found[label][1] == pytest.approx(se, rel=0.02), label
    correlation = 100 * np.corrcoef(base, rl)[0, 1]
    cor = next(line for line in lines if line.startswith("Cor"))
    assert float(cor.rpartition(": ")[2].rstrip("%")) == pytest.approx(correlation, abs=1)
