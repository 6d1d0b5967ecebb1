"""Intervals, tests and sizes, against scipy, statsmodels and cases reckoned by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest
from statsmodels.regression.linear_model import WLS
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from curator import statistics
from curator.statistics import (
    decisive_pairs_needed,
    newcombe,
    ratio_interval,
    sign_test,
    sign_test_power,
    weighted_slope,
    z_value,
)
from trainer.intervals import effective_size, wilson_interval


def settled(looks: int, step: int, shared: bool) -> float:
    """Return how often an even duel passes at one of its looks, `step` pairs apart: exactly."""
    chances, passed = {0: 1.0}, 0.0
    for look in range(1, looks + 1):
        after: dict[int, float] = {}
        for wins, chance in chances.items():
            for more in range(step + 1):
                share = chance * math.comb(step, more) / 2**step
                after[wins + more] = after.get(wins + more, 0.0) + share
        n, alpha = step * look, statistics.ALPHA / (look if shared else 1)
        out = {wins for wins in after if sign_test(wins, n - wins) <= alpha}
        passed += sum(after[wins] for wins in out)
        chances = {wins: chance for wins, chance in after.items() if wins not in out}
    return passed


def test_looking_again_takes_more_to_be_settled() -> None:
    """The figures that the README and curator.duels give."""
    assert settled(1, 50, shared=False) < 0.05
    assert [round(settled(4, 50, shared), 3) for shared in (True, False)] == [0.054, 0.096]
    assert [round(settled(10, 50, shared), 3) for shared in (True, False)] == [0.065, 0.161]


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (3, 19), (60, 132), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.997])
def test_wilson_is_statsmodels_own(successes: int, n: int, level: float) -> None:
    expected = proportion_confint(successes, n, 1 - level, "wilson")
    assert wilson_interval(successes, n, z_value(level)) == pytest.approx(expected, abs=1e-12)


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    low, high = wilson_interval(0.5 * 10.5, 10.5)
    assert wilson_interval(5, 10)[0] < low < 0.5 < high < wilson_interval(5, 10)[1]


@pytest.mark.parametrize("wins", [0, 1, 5, 10, 31])
@pytest.mark.parametrize("losses", [0, 2, 10, 40])
def test_the_sign_test_is_scipys(wins: int, losses: int) -> None:
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_five_of_five_by_hand() -> None:
    assert sign_test(5, 0) == 2 / 32 and sign_test(6, 0) == 2 / 64


def test_ninety_decisive_pairs_show_65_percent() -> None:
    assert decisive_pairs_needed(0.65) == decisive_pairs_needed(0.35) == 90
    assert sign_test_power(90, 0.65) >= 0.8 > sign_test_power(89, 0.65)
    assert decisive_pairs_needed(1.0) == 6  # by hand: five of five is p = 0.0625
    assert decisive_pairs_needed(0.5) is None and decisive_pairs_needed(0.5001) is None


def test_power_by_counting_what_would_be_significant() -> None:
    from scipy.stats import binom

    n = 40
    significant = [k for k in range(n + 1) if binomtest(k, n).pvalue <= 0.05]
    expected = sum(binom.pmf(k, n, 0.7) for k in significant)
    assert sign_test_power(n, 0.7) == pytest.approx(expected, rel=1e-9)
    # Above the exact search, the normal approximation: within a few of a hundred.
    assert decisive_pairs_needed(0.55) == pytest.approx(783, abs=10)


def test_newcombe_without_correlation_is_that_of_two_samples() -> None:
    # Both shares one half and no correlation (phi = 0): the method for independent samples.
    difference, low, high = newcombe([10, 10, 10, 10])
    expected = confint_proportions_2indep(20, 40, 20, 40, method="newcomb")
    assert (difference, low, high) == pytest.approx((0.0, *expected), abs=1e-12)


def test_newcombe_by_hand() -> None:
    # 36 both, 12 the first alone, 2 the second alone, 0 neither (as in Newcombe 1998): the
    # shares are 48 and 38 of 50; both * neither < alone * other, so phi has no correction.
    (l1, u1), (l2, u2) = wilson_interval(48, 50), wilson_interval(38, 50)
    phi = -24 / math.sqrt(48 * 2 * 38 * 12)
    a, b, c, d = 0.96 - l1, u2 - 0.76, u1 - 0.96, 0.76 - l2
    low = 0.2 - math.sqrt(a * a - 2 * phi * a * b + b * b)
    high = 0.2 + math.sqrt(c * c - 2 * phi * c * d + d * d)
    assert newcombe([36, 12, 2, 0]) == pytest.approx((0.2, low, high))
    assert low == pytest.approx(0.0569, abs=5e-4) and high == pytest.approx(0.3404, abs=5e-4)


def test_newcombe_covers_what_it_should() -> None:
    draw = np.random.default_rng(5)
    truth = np.array([0.3, 0.25, 0.1, 0.35])
    hits = 0
    for _ in range(2_000):
        _, low, high = newcombe([float(c) for c in draw.multinomial(60, truth)])
        hits += low <= 0.15 <= high
    assert 0.93 <= hits / 2_000 <= 0.985
    with pytest.raises(ValueError, match="at least one row"):
        newcombe([0, 0, 0, 0])


def test_rows_that_belong_together_are_worth_fewer() -> None:
    values = [0.0, 1.0] * 20
    assert effective_size(values, range(40)) == pytest.approx(40 * 39 / 40 * 40 / 39)
    twice = [value for value in values for _ in "ab"]
    assert effective_size(twice, [i // 2 for i in range(80)]) == pytest.approx(40, rel=0.02)
    assert effective_size([1.0] * 6, list("aabbcc")) == 3
    assert effective_size([], []) == 0


def test_the_ratio_is_recovered_and_covered() -> None:
    draw = np.random.default_rng(6)
    hits = 0
    for _ in range(1_000):
        below = draw.normal(40, 8, 40)
        above = 1.1 * below + draw.normal(0, 8, 40)
        _, low, high = ratio_interval(list(above), list(below))
        hits += low <= 1.1 <= high
    assert 0.92 <= hits / 1_000 <= 0.98
    with pytest.raises(ValueError, match="4 rows"):
        ratio_interval([1, 2, 3], [1, 2, 3])


def test_the_slope_is_statsmodels_own_for_known_variances() -> None:
    xs, ys, variances = [1.0, 2.0, 3.5, 4.0], [0.5, 0.62, 0.7, 0.78], [0.01, 0.004, 0.003, 0.002]
    fit = WLS(ys, [[1.0, x] for x in xs], weights=[1 / v for v in variances]).fit()
    slope = weighted_slope(xs, ys, variances)
    assert slope is not None
    # fit.normalized_cov_params is the covariance for variances that are known, not estimated.
    half = z_value() * math.sqrt(fit.normalized_cov_params[1][1])
    assert (slope.value, slope.low, slope.high) == pytest.approx(
        (fit.params[1], fit.params[1] - half, fit.params[1] + half)
    )
    assert weighted_slope(xs[:2], ys[:2], variances[:2]) is None
    assert weighted_slope([1, 1, 1], ys[:3], variances[:3]) is None
    rng = np.random.default_rng(0)
    for _ in range(100):  # whatever rounding makes of equal values, they are equal
        assert weighted_slope([40.0] * 5, [0.5] * 5, list(rng.uniform(1e-4, 1, 5))) is None


def test_the_flip_rate_of_one_judgment_from_pairs_judged_twice() -> None:
    assert statistics.flip_rate(5, 29) is None
    # Two judgments that are each flipped with 10 % disagree in 2 * 0.1 * 0.9 of all cases.
    assert statistics.flip_rate(18, 100) == pytest.approx(0.1)
    assert statistics.flip_rate(0, 40) == 0
    assert statistics.flip_rate(25, 40) == statistics.MOST_FLIPS
