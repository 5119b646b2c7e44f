"""Equality within a margin: two one-sided tests.

That a difference d lies within (-m, m) is shown by rejecting both d <= -m and d >= m, each at the level
alpha, so the p-value is the larger of the two; equivalently, the interval of confidence 1 - 2 alpha lies
within the margin. Nothing is shown by a difference that is merely not significant.

Reference: Schuirmann 1987 (TOST).
"""

from __future__ import annotations

import math


def equivalence_p(effect: float, stderr: float, degrees: float, margin: float) -> float:
    """Return the p-value of "the difference is within the margin".

    Args:
        effect: the estimated difference.
        stderr: its standard error.
        degrees: Student's degrees of freedom; infinite for a normal estimate.
        margin: above 0, in the unit of the effect.
    """
    from scipy.special import ndtr, stdtr

    if stderr == 0.0:
        return 0.0 if abs(effect) < margin else 1.0
    nearer_end = (abs(effect) - margin) / stderr
    return float(ndtr(nearer_end) if math.isinf(degrees) else stdtr(degrees, nearer_end))


def unseen_p(n: int, margin: float) -> float:
    """Return the p-value of the same for n items of which none tells two runs apart.

    If they differed on a fraction of at least `margin` of all items, n items would hide it with a
    probability of at most (1 - margin)^n.
    """
    return max(1.0 - margin, 0.0) ** n
