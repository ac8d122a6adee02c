"""Means over answers, and how sure they are: standard errors clustered by problem.

The answers to one problem are not independent of one another.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Z95 = NormalDist().inv_cdf(0.975)
_T975 = (
    *(math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365),
    *(2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
)
"""The 97.5 % quantile of Student's t with 0 to 15 degrees of freedom, from a table."""


def t975(dof: int) -> float:
    """The 97.5 % quantile of Student's t; from 16 degrees of freedom on by the expansion in 1/ν.

    Source: Abramowitz and Stegun, 26.7.5; right to 1e-4 there.
    """
    if dof < len(_T975):
        return _T975[dof]
    z = Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / dof + second / dof**2 + third / dof**3


@dataclass(frozen=True)
class Estimate:
    """A mean over graded answers.

    Attributes:
        value: The mean.
        se: Its standard error, None with a single problem.
        n_samples: Graded answers.
        n_problems: Problems with graded answers.
    """

    value: float
    se: float | None
    n_samples: int
    n_problems: int

    @property
    def ci(self) -> tuple[float, float] | None:
        """The 95 % confidence interval by the normal distribution."""
        return None if self.se is None else (self.value - Z95 * self.se, self.value + Z95 * self.se)

    @property
    def p_value(self) -> float | None:
        """Of the hypothesis that the mean is 0, two-sided, by the normal distribution."""
        if not self.se:
            return None
        return math.erfc(abs(self.value / self.se) / math.sqrt(2))


def mean_by_problem(values: np.ndarray, problems: np.ndarray) -> Estimate | None:
    """The mean of all values, with a standard error clustered by problem (CR1).

    se² = G/(G−1) · Σ_g (Σ_i (x_gi − mean))² / N², over G problems and N values. Of answers that
    are right or wrong this is Avg@n, and pass@1 where each problem has one.

    Args:
        values: [N]; NaN for what has no grade, which is left out.
        problems: [N] the problem of each.

    Returns:
        None where nothing is graded.
    """
    graded = ~np.isnan(values)
    values, problems = values[graded], problems[graded]
    if not len(values):
        return None
    mean = float(values.mean())
    names, which = np.unique(problems, return_inverse=True)
    groups, n = len(names), len(values)
    residuals = np.bincount(which, weights=values - mean)
    se = math.sqrt(groups / (groups - 1) * float((residuals**2).sum())) / n if groups > 1 else None
    return Estimate(mean, se, n, groups)


def paired_difference(
    values: np.ndarray, others: np.ndarray, problems: np.ndarray
) -> Estimate | None:
    """The mean of values − others, answer by answer to the same problems and streams.

    Args:
        values: [N]; NaN for what has no grade.
        others: [N] the answers with the same problem, sample and seed.
        problems: [N].
    """
    return mean_by_problem(values - others, problems)


def pass_at_k(values: np.ndarray, problems: np.ndarray, k: int) -> Estimate | None:
    """The chance that one of k answers is right: 1 − C(n−c, k)/C(n, k), the unbiased estimate.

    Source: arXiv 2107.03374, Eq. 1.

    Args:
        values: [N] 1 or 0; NaN for what has no grade.
        problems: [N].
        k: Answers; problems with fewer graded ones are left out.
    """
    graded = ~np.isnan(values)
    names, which = np.unique(problems[graded], return_inverse=True)
    n = np.bincount(which, minlength=len(names))
    c = np.bincount(which, weights=values[graded], minlength=len(names)).round().astype(int)
    chances = np.array(
        [
            1 - math.comb(int(total - right), k) / math.comb(int(total), k)
            for total, right in zip(n, c, strict=True)
            if total >= k
        ]
    )
    estimate = mean_by_problem(chances, np.arange(len(chances)))
    if estimate is None:
        return None
    return Estimate(estimate.value, estimate.se, int(n[n >= k].sum()), estimate.n_problems)
