"""How an interval in a manifest, a table or a report is computed. Standard library only.

Both sides import it, so that a figure means the same wherever it is shown.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence

Z95 = 1.959963984540054
FEW_CLUSTERS = 10
# Half the 5 % point of chi squared with 2, 4 and 6 degrees of freedom.
POISSON_LOWER = {1: 0.0513, 2: 0.3554, 3: 0.8177}


def wilson_interval(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a share, at 95 % unless `z` differs; (0, 1) when n is 0.

    Wilson 1927, without continuity correction. `z`: the standard normal quantile. `n` may be an
    effective sample size, so neither number need be whole.
    """
    if n <= 0:
        return 0.0, 1.0
    share, z2 = successes / n, z * z
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # None of n is 0, and all of n is 1: rounding may leave the bound a hair inside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def modified_wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share, mended where it is known to cover too little.

    Within three of none (or of all) Wilson's bound lies too near to the share; there it is the
    Poisson one, half the 5 % point of chi squared with 2 x degrees of freedom, over n (Brown, Cai
    and DasGupta 2001, Statistical Science 16:101, section 4.1.1). For n of 50 or more.
    """
    low, high = wilson_interval(successes, n)
    if n >= 50 and successes in POISSON_LOWER:
        low = POISSON_LOWER[successes] / n
    if n >= 50 and n - successes in POISSON_LOWER:
        high = 1 - POISSON_LOWER[n - successes] / n
    return low, high


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """Return the 95 % t interval of a mean of at least 4 values, in at least 4 clusters if any.

    Where values belong together their effective size counts, and the degrees of freedom are the
    clusters', less one. The t quantile is the Cornish-Fisher expansion of Abramowitz and Stegun
    26.7.5, within 1 % of the exact one from 3 degrees of freedom on. Raises ValueError for fewer.
    """
    groups = len(values) if clusters is None else len(set(clusters))
    if groups < 4:
        raise ValueError("an interval of a mean needs at least 4 values that stand by themselves")
    size = len(values) if clusters is None else effective_size(values, clusters)
    v, z = groups - 1, Z95
    t = (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
    mean = statistics.fmean(values)
    half = t * statistics.stdev(values) / math.sqrt(size)
    return mean - half, mean + half


def effective_size(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Return how many independent values these are worth, given which of them belong together.

    n over the design effect (Kish 1965): the variance of the mean with the residuals summed
    within clusters (Liang and Zeger 1986, times G / (G - 1)), over that of independent values,
    and never below 1. Of fewer than FEW_CLUSTERS that variance cannot be told, nor of values that
    are all equal: then they are worth one a cluster.
    """
    n = len(values)
    if n < 2:
        return float(n)
    mean = statistics.fmean(values)
    sums: dict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    groups = len(sums)
    independent = sum((value - mean) ** 2 for value in values) / (n * (n - 1))
    if independent == 0 or groups < FEW_CLUSTERS:
        return float(groups)
    together = groups / (groups - 1) * sum(total**2 for total in sums.values()) / n**2
    return n / max(1.0, together / independent)
