"""How figures are compared: intervals, tests and how many judgments a question needs.

Pure, standard library only. Wilson's interval of a share and the t interval of a mean are in
trainer.intervals, which both sides import.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any

from curator.words import AnnotatorKind
from trainer.intervals import wilson_interval

# Under this many held-out preferences an interval is wider than most differences one hopes for.
FEWEST_TO_CONCLUDE = 20
SIMULATED = AnnotatorKind.SIMULATED.value
LEVEL = 0.95
ALPHA = 0.05
POWER = 0.8
# Above this a count of pairs is nobody's plan; a search for it ends here.
MOST_PAIRS = 100_000
# Up to here the exact power is looked for.
MOST_EXACT = 400


# --- what a figure rests on ---------------------------------------------------------------------


def apart(figure: Mapping[str, Any]) -> int:
    """Return how many of a figure's rows stand by themselves; 0 for none."""
    return int(figure.get("clusters", figure.get("n", 0)))


def simulated_text(kinds: Mapping[str, int] | None) -> str:
    """Return how many of some preferences are no person's, as "4 of 10 simulated"; or nothing.

    `kinds`: how many preferences each kind of annotator chose.
    """
    count = (kinds or {}).get(SIMULATED, 0)
    return f"{count} of {sum((kinds or {}).values())} {SIMULATED}" if count else ""


# --- intervals ------------------------------------------------------------------------------------


def z_value(level: float = LEVEL) -> float:
    """Return the standard normal quantile of a two-sided interval at a level."""
    return NormalDist().inv_cdf(0.5 + level / 2)


# --- two shares of the same rows ----------------------------------------------------------------


def newcombe(cells: Sequence[float], level: float = LEVEL) -> tuple[float, float, float]:
    """Return (the first share minus the second, low, high) over the same rows.

    `cells`: rows in both, in the first alone, in the second alone, in neither; they need not be
    whole, where rows that belong together are worth fewer. Newcombe's hybrid score interval for
    paired data (Statistics in Medicine 1998, 17:2635, method 10). Raises ValueError without rows.
    """
    both, alone, other, neither = cells
    n = sum(cells)
    if n <= 0:
        raise ValueError("a difference needs at least one row")
    p1, p2 = (both + alone) / n, (both + other) / n
    (low1, high1), (low2, high2) = (
        wilson_interval(ones, n, z_value(level)) for ones in (both + alone, both + other)
    )
    margins = (both + alone) * (other + neither) * (both + other) * (alone + neither)
    product = both * neither - alone * other
    if product > 0:
        product = max(product - n / 2, 0.0)
    phi = product / math.sqrt(margins) if margins > 0 else 0.0
    difference = p1 - p2

    def reach(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * phi * up * down + down * down))

    low = difference - reach(p1 - low1, high2 - p2)
    high = difference + reach(high1 - p1, p2 - low2)
    return difference, max(-1.0, low), min(1.0, high)


def ratio_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Return (mean of `first` over mean of `second`, low, high), over the same rows, at 95 %.

    The ratio estimator with its linearised variance (Cochran 1977, 6.4). Raises ValueError for
    fewer than 4 rows, or when the second mean is not above 0.
    """
    n, below = len(first), fmean(second) if second else 0.0
    if n < 4 or below <= 0:
        raise ValueError("a ratio needs at least 4 rows and a mean above 0 to divide by")
    ratio = fmean(first) / below
    residuals = [one - ratio * other for one, other in zip(first, second, strict=True)]
    half = z_value() * math.sqrt(sum(r * r for r in residuals) / (n - 1) / n) / below
    return ratio, ratio - half, ratio + half


# --- how often one judgment is the other way --------------------------------------------------

# Below so many repeats a flip rate is not told from another; above the cap the robust loss, which
# divides by 1 - 2 * rate, makes noise of few pairs large.
FEWEST_REPEATS = 30
MOST_FLIPS = 0.3


def flip_rate(disagreeing: int, repeats: int) -> float | None:
    """Return how often one judgment is flipped, from pairs judged twice; None for too few.

    Two judgments with the same rate e disagree with a share of d = 2 e (1 - e), so that
    e = (1 - sqrt(1 - 2 d)) / 2; capped at MOST_FLIPS, also where d is one half or above.
    """
    if repeats < FEWEST_REPEATS:
        return None
    share = disagreeing / repeats
    return min(MOST_FLIPS, (1 - math.sqrt(max(0.0, 1 - 2 * share))) / 2)


# --- the sign test --------------------------------------------------------------------------------


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of as uneven a split of wins and losses by chance.

    Twice the smaller tail of the binomial with a share of one half, at most 1; 1 without any.
    """
    n, few = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(few + 1))
    return min(1.0, float(2 * tail / 2**n))


def _tail(n: int, most: int, share: float) -> float:
    """Return the chance of at most `most` successes in n."""
    if share in (0.0, 1.0):
        return float(share == 0.0 or most >= n)
    log = math.log(share), math.log1p(-share), math.lgamma(n + 1)
    return math.fsum(
        math.exp(
            log[2] - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log[0] + (n - k) * log[1]
        )
        for k in range(most + 1)
    )


def sign_test_power(n: int, share: float, alpha: float = ALPHA) -> float:
    """Return the chance that n decisive pairs of a true share give a sign test of p <= alpha."""
    few, tail = -1, 0
    while 2 * (tail + math.comb(n, few + 1)) <= alpha * 2**n:
        few += 1
        tail += math.comb(n, few)
    return 0.0 if few < 0 else _tail(n, few, share) + _tail(n, few, 1 - share)


def decisive_pairs_needed(share: float, alpha: float = ALPHA) -> int | None:
    """Return the fewest decisive pairs with which the sign test shows a true share.

    At `alpha`, two-sided, with a power of 80 %: exact up to about 400 pairs, above by the normal
    approximation (Fleiss, Levin and Paik 2003, 2.4). None for an even split, or above 100,000.
    """
    gap = abs(share - 0.5)
    if gap < 1e-9:
        return None
    root = z_value(1 - alpha) / 2 + NormalDist().inv_cdf(POWER) * math.sqrt(share * (1 - share))
    plain = (root / gap) ** 2
    if plain > MOST_EXACT:
        return math.ceil(plain) if plain <= MOST_PAIRS else None
    n = 1 if plain < 50 else int(0.8 * plain)
    while sign_test_power(n, share, alpha) < POWER:
        n += 1
    return n


# --- a line through figures -----------------------------------------------------------------------


@dataclass(frozen=True)
class Slope:
    """A change a unit, with its 95 % interval, from `n` points."""

    value: float
    low: float
    high: float
    n: int


def weighted_slope(
    xs: Sequence[float], ys: Sequence[float], variances: Sequence[float]
) -> Slope | None:
    """Return the slope of a line through points of known variance, by weighted least squares.

    Weights are one over the variance, and so is the slope's own: 1 / sum w (x - mean)^2. None
    for fewer than 3 points, or when they all have the same x.
    """
    weights = [1 / variance for variance in variances]
    total = sum(weights)
    if len(xs) < 3 or total <= 0 or len(set(xs)) < 2:  # rounding may spread what is all the same
        return None
    mean_x = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    mean_y = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    rows = list(zip(weights, xs, ys, strict=True))
    spread = sum(w * (x - mean_x) ** 2 for w, x, _ in rows)
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in rows) / spread
    half = z_value() / math.sqrt(spread)
    return Slope(slope, slope - half, slope + half, len(xs))
