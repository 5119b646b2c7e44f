"""What a table of differences may claim: which are there, which are none, which could not be seen.

Many comparisons in one table: Holm's step-down correction. Among m true null hypotheses tested at 5 %
some look significant by chance. Holm (1979) multiplies the smallest p-value by m, the next by m - 1, and
so on, which keeps the chance of *any* false claim in the table below 5 % whatever the dependence between
the comparisons. No corrected value is smaller than one of a smaller p-value, and none is larger than 1.

Before a run: the smallest difference that so many items or windows can show. "Show" means: a two-sided
test at level `alpha` finds it with probability `power`. A report quotes these numbers beside every
difference that it calls not decidable, so that "no difference" is never read where "too few items" is
meant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the corrected p-values in the order given; a NaN stays NaN and counts for nothing."""
    ordered = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = list(p_values), 0.0
    for n_smaller, (p, i) in enumerate(ordered):
        largest = max(largest, p * (len(ordered) - n_smaller))
        corrected[i] = min(largest, 1.0)
    return corrected


def detectable_difference(
    n: int, difference_sd: float, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Return the smallest mean difference that a paired t-test on n differences shows.

    Args:
        n: windows or items, at least 2.
        difference_sd: standard deviation of the paired differences, whose unit the result has.
        alpha: level of the two-sided test.
        power: probability of finding the difference.
    """
    from statsmodels.stats.power import TTestPower

    effect = TTestPower().solve_power(nobs=n, alpha=alpha, power=power)
    return float(effect) * difference_sd


def detectable_accuracy_difference(
    n: int, discordant_frac: float, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Return the smallest accuracy difference that McNemar's test on n items shows.

    With f the fraction of items on which the runs disagree, the difference d solves
    sqrt(n) d = z_alpha sqrt(f) + z_power sqrt(f - d^2) (Connor 1987).

    Args:
        n: items of the task.
        discordant_frac: fraction of items that exactly one run gets right, as seen before.
        alpha: level of the two-sided test.
        power: probability of finding the difference.

    Returns:
        A fraction; at most `discordant_frac`, which is the largest difference that can occur.
    """
    from scipy.special import ndtri

    z_alpha, z_power = float(ndtri(1 - alpha / 2)), float(ndtri(power))
    a, b = n + z_power**2, 2 * z_alpha * math.sqrt(n * discordant_frac)
    c = (z_alpha**2 - z_power**2) * discordant_frac
    root = max(b**2 - 4 * a * c, 0.0)
    return min((b + math.sqrt(root)) / (2 * a), discordant_frac)
