"""Intervals against published values, and means with t quantiles from a table."""

from __future__ import annotations

import pytest

from trainer.intervals import mean_interval, modified_wilson_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(8, 10, 0.490162, 0.943318), (0, 20, 0.0, 0.161125), (20, 20, 0.838875, 1.0),
     (65, 100, 0.552544, 0.736357), (1, 2, 0.094531, 0.905469)],
)  # fmt: skip
def test_wilson(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=2e-6)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for n in range(1, 3000):  # the share itself is never left out, for a hair of rounding
        assert wilson_interval(0, n)[0] == 0.0 and wilson_interval(n, n)[1] == 1.0


def test_near_none_and_near_all_the_poisson_bound_is_taken() -> None:
    from scipy.stats import chi2

    for x in range(1, 4):
        low, high = modified_wilson_interval(x, 480)
        assert low == pytest.approx(chi2.ppf(0.05, 2 * x) / 2 / 480, abs=1e-7)
        assert low < wilson_interval(x, 480)[0] and high == wilson_interval(x, 480)[1]
        mirrored = modified_wilson_interval(480 - x, 480)
        assert mirrored == pytest.approx((1 - high, 1 - low))
    for x, n in ((0, 480), (4, 480), (240, 480), (480, 480), (2, 49)):
        assert modified_wilson_interval(x, n) == pytest.approx(wilson_interval(x, n))


def test_near_none_it_covers_what_wilson_does_not() -> None:
    from scipy.stats import binom

    covered = {}
    for interval in (wilson_interval, modified_wilson_interval):
        holds = [low <= 0.001 <= high for low, high in (interval(x, 480) for x in range(20))]
        covered[interval] = sum(binom.pmf(x, 480, 0.001) for x in range(20) if holds[x])
    assert covered[wilson_interval] < 0.92 < 0.98 < covered[modified_wilson_interval]


def test_t_interval_of_a_mean() -> None:
    # mean 3, standard error 0.70711, t(0.975, 4) = 2.776445
    assert mean_interval([1, 2, 3, 4, 5]) == pytest.approx((1.036757, 4.963243), rel=0.01)
    # mean 2.5, standard error 0.645497, t(0.975, 3) = 3.182446
    assert mean_interval([1, 2, 3, 4]) == pytest.approx((0.445739, 4.554261), rel=0.035)
    # mean 2.94, standard error 0.289137, t(0.975, 49) = 2.009575
    values = [float(i % 7) for i in range(50)]
    assert mean_interval(values) == pytest.approx((2.358958, 3.521042), rel=1e-5)
    # Five clusters of ten equal values: t(0.975, 4), and five values' worth of standard error.
    often = [1.0, 2.0, 3.0, 4.0, 5.0] * 10
    half = 2.776445 * 1.428571 / 5**0.5
    found = mean_interval(often, [str(value) for value in often])
    assert found == pytest.approx((3 - half, 3 + half), rel=0.02)
    with pytest.raises(ValueError, match="stand by themselves"):
        mean_interval(often, ["a", "b", "c"] * 16 + ["a", "b"])
    with pytest.raises(ValueError, match="at least 4"):
        mean_interval([1, 2, 3])
