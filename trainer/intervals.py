"""How an interval in a manifest, a table or a report is computed. Standard library only.

Both sides import it, so that a figure means the same wherever it is shown.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Z95 = 1.959963984540054


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share; (0, 1) when n is 0.

    Wilson 1927, without continuity correction.
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # None of n is 0, and all of n is 1: rounding may leave the bound a hair inside.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % t interval of a mean of at least 4 values.

    The t quantile is the Cornish-Fisher expansion of Abramowitz and Stegun 26.7.5, within 1 %
    of the exact one from 3 degrees of freedom on. Raises ValueError for fewer than 4 values.
    """
    if len(values) < 4:
        raise ValueError("an interval of a mean needs at least 4 values")
    v, z = len(values) - 1, Z95
    t = (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
    mean = statistics.fmean(values)
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half
