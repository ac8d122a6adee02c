"""Accuracies with errors clustered by problem, worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from dlogp_ray.analysis.estimates import mean_by_problem, paired_difference, pass_at_k, t975

NAN = math.nan


def test_the_error_of_a_mean_is_clustered_by_problem() -> None:
    # Means of a: 1, b: 0, c: ½; of all ½. Sums of residuals: a +1, b −1, c 0.
    # se² = 3/2 · (1 + 1 + 0) / 6² = 1/12
    values, problems = np.array([1.0, 1, 0, 0, 1, 0]), np.array(list("aabbcc"))
    found = mean_by_problem(values, problems)
    assert found is not None
    assert (found.value, found.n_samples, found.n_problems) == (0.5, 6, 3)
    assert found.se == pytest.approx(math.sqrt(1 / 12))
    low, high = found.ci or (NAN, NAN)
    assert (low, high) == pytest.approx((0.5 - 1.959964 * found.se, 0.5 + 1.959964 * found.se))


def test_with_one_answer_a_problem_it_is_the_error_of_a_share() -> None:
    # √(p(1−p)/(n−1)) = √(0.3·0.7/9)
    found = mean_by_problem(np.array([1.0] * 3 + [0.0] * 7), np.arange(10))
    assert found is not None
    assert found.se == pytest.approx(math.sqrt(0.21 / 9))


def test_what_has_no_grade_is_left_out() -> None:
    found = mean_by_problem(np.array([1.0, NAN, 0.0]), np.array(["a", "a", "b"]))
    assert found is not None
    assert (found.value, found.n_samples, found.n_problems) == (0.5, 2, 2)
    assert mean_by_problem(np.array([NAN]), np.array(["a"])) is None


def test_one_problem_has_no_error() -> None:
    found = mean_by_problem(np.array([1.0, 0.0]), np.array(["a", "a"]))
    assert found is not None
    assert (found.se, found.ci, found.p_value) == (None, None, None)


def test_a_paired_difference_is_surer_than_its_two_means() -> None:
    one = np.array([1.0, 1, 1, 0, 0, 0])
    two = np.array([1.0, 1, 1, 1, 0, 0])
    found = paired_difference(two, one, np.arange(6))
    assert found is not None
    # differences 0 0 0 1 0 0: mean 1/6, √(6/5 · (25/36 + 5/36)) / 6 = 1/6: one standard error
    assert (found.value, found.se) == pytest.approx((1 / 6, 1 / 6))
    assert found.p_value == pytest.approx(0.3173, abs=1e-4)
    alone = mean_by_problem(two, np.arange(6))
    assert alone is not None
    assert alone.se is not None
    assert found.se is not None
    assert alone.se > found.se


def test_pass_at_k_by_hand() -> None:
    # a: 1 of 4 right, 1 − C(3,2)/C(4,2) = ½; b: none, 0; c: 3 of 4, 1; d has one answer only
    values = np.array([1.0, 0, 0, 0] + [0.0] * 4 + [1.0, 1, 1, 0] + [1.0])
    problems = np.array(list("aaaabbbbccccd"))
    found = pass_at_k(values, problems, 2)
    assert found is not None
    assert (found.value, found.n_samples, found.n_problems) == (pytest.approx(0.5), 12, 3)
    # of ½, 0, 1: √(½ / 2 / 3)... the standard deviation ½ over √3
    assert found.se == pytest.approx(0.5 / math.sqrt(3))


def test_pass_at_1_is_the_mean_of_the_problems() -> None:
    values, problems = np.array([1.0, 0, 0, 1, 1, 1]), np.array(list("aabbcc"))
    found = pass_at_k(values, problems, 1)
    assert found is not None
    assert found.value == pytest.approx(4 / 6)


def test_the_clustered_interval_covers_and_the_plain_one_does_not() -> None:
    """Problems of their own difficulty, 8 answers each: 95 % intervals, 2,000 rounds."""
    rng = np.random.default_rng(0)
    problems = np.repeat(np.arange(100), 8)
    covered = plain = 0
    for _ in range(2_000):
        easy = rng.beta(0.5, 0.5, 100)  # mean ½
        values = (rng.random((100, 8)) < easy[:, None]).ravel().astype(float)
        found = mean_by_problem(values, problems)
        assert found is not None
        low, high = found.ci or (NAN, NAN)
        covered += low <= 0.5 <= high
        half = 1.96 * math.sqrt(found.value * (1 - found.value) / 800)
        plain += abs(found.value - 0.5) <= half
    # 2,000 rounds at 95 %: standard deviation 0.5 %
    assert 0.93 <= covered / 2_000 <= 0.97
    assert plain / 2_000 < 0.75


def test_student_s_quantile_is_scipy_s() -> None:
    for dof in (*range(1, 40), 100, 1_000):
        # The table has three decimals.
        assert t975(dof) == pytest.approx(stats.t.ppf(0.975, dof), abs=6e-4)
