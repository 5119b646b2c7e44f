"""Many comparisons in one table: Holm's step-down correction.

Among m true null hypotheses tested at 5 % some look significant by chance. Holm (1979) multiplies
the smallest p-value by m, the next by m - 1, and so on, which keeps the chance of *any* false claim
in the table below 5 % whatever the dependence between the comparisons. No corrected value is smaller than
one of a smaller p-value, and none is larger than 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the corrected p-values in the order given; a NaN stays NaN and counts for nothing."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = list(p_values), 0.0
    for n_smaller, (p, i) in enumerate(known):
        largest = max(largest, p * (len(known) - n_smaller))
        corrected[i] = min(largest, 1.0)
    return corrected
