"""Many comparisons in one table: Holm's step-down correction.

Among m true null hypotheses tested at 5 % some look significant by chance. Holm (1979) multiplies
the smallest p-value by m, the next by m - 1, and so on, which keeps the chance of *any* false claim
in the table below 5 % whatever the dependence between the comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the corrected p-values in the order given; a NaN stays NaN and counts for nothing."""
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if not math.isnan(p)]
    if not known:
        return list(p_values)
    corrected = iter(multipletests(known, method="holm")[1].tolist())
    return [p if math.isnan(p) else next(corrected) for p in p_values]
