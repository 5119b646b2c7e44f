"""Several calibration draws: the mean over draws, and how much of its error each source brings.

The response y[d, i] of draw d on item i (an item is a task's document or a block of windows) is
split by the two-way random effects model without replication

    y[d, i] = mu + draw_d + item_i + residual_di

whose variances follow from the mean squares of draws, items and residuals. Another draw of both the
calibration set and the evaluation items moves the grand mean with the variance

    var(mean) = var_draw / D + var_item / I + var_residual / (D I)
              = (MS_draw + MS_item - MS_residual) / (D I)

The interval and the test have two sources: the draws' means with D - 1 degrees of freedom, and the items'
means over draws with theirs, as `errors.py` puts them together. So three draws cannot claim what only
the items' number would support, nor the reverse. With one draw the draw's part is unknown (NaN), and the
interval speaks about this calibration set alone.

Reference: Cornfield and Tukey 1956.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from faqbench.statistics.errors import Error, Items, Student

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class DrawSummary:
    """A mean over draws and items, with its error and where the error comes from.

    Attributes:
        mean: the grand mean, in the unit of the responses.
        stderr: its standard error for new draws and new items.
        low: lower end of the interval.
        high: its upper end.
        p_value: two-sided, for mean = 0.
        error: what these three are read off.
        n_draws: D.
        n_items: I.
        draw_variance: variance between calibration draws; NaN for one draw.
        item_variance: variance between items.
        residual_variance: what neither explains; NaN for one draw, where items hold it too.
    """

    mean: float
    stderr: float
    low: float
    high: float
    p_value: float
    error: Error
    n_draws: int
    n_items: int
    draw_variance: float
    item_variance: float
    residual_variance: float


def aggregate_draws(
    responses: Array, *, weights: Array | None = None, confidence: float = 0.95
) -> DrawSummary:
    """Aggregate responses over draws and items.

    Args:
        responses: [n_draws, n_items], for a comparison the paired differences A - B.
        weights: [n_items] of items that are right or wrong, see `Items`; None for other responses.
        confidence: of the interval.

    Raises:
        ValueError: for fewer than two items, or values that are not finite.
    """
    y = np.asarray(responses, dtype=np.float64)
    if y.ndim != 2 or y.shape[1] < 2 or not np.isfinite(y).all():
        raise ValueError(f"expected finite [n_draws, n_items >= 2], not shape {y.shape}")
    n_draws, n_items = y.shape
    if n_draws == 1:
        variance = float(y[0].var(ddof=1))
        parts = (variance / n_items, math.nan, variance, math.nan)
    else:
        parts = _two_way(y)
    mean, error = float(y.mean()), Error((items_source(y, weights),))
    if n_draws > 1:
        spread = float(y.mean(axis=1).std(ddof=1))
        error = error.beside(Student(stderr=spread / math.sqrt(n_draws), degrees=n_draws - 1))
    low, high = error.interval(mean, confidence=confidence)
    return DrawSummary(
        mean=mean,
        stderr=math.sqrt(parts[0]),
        low=low,
        high=high,
        p_value=error.p_value(mean),
        error=error,
        n_draws=n_draws,
        n_items=n_items,
        draw_variance=parts[1],
        item_variance=parts[2],
        residual_variance=parts[3],
    )


def items_source(responses: Array, weights: Array | None) -> Student | Items:
    """Return the items' part of the error of a mean over draws and items, [n_draws, n_items]."""
    by_item = responses.mean(axis=0)
    if weights is not None:
        return Items(by_item, weights)
    n_items = len(by_item)
    return Student(stderr=float(by_item.std(ddof=1)) / math.sqrt(n_items), degrees=n_items - 1)


def _two_way(y: Array) -> tuple[float, float, float, float]:
    """Return var(mean), and the draw, item and residual variances."""
    n_draws, n_items = y.shape
    by_draw, by_item = y.mean(axis=1), y.mean(axis=0)
    residual = y - by_draw[:, None] - by_item[None, :] + y.mean()
    freedom = np.array([n_draws - 1, n_items - 1, (n_draws - 1) * (n_items - 1)], dtype=np.float64)
    squares = np.array(
        [n_items * by_draw.var() * n_draws, n_draws * by_item.var() * n_items, float((residual**2).sum())]
    )
    ms_draw, ms_item, ms_residual = (float(x) for x in squares / freedom)
    # A component cannot be negative; if its estimate is, the larger mean square is used.
    combined = max(ms_draw + ms_item - ms_residual, ms_draw, ms_item)
    return (
        combined / y.size,
        max(0.0, (ms_draw - ms_residual) / n_items),
        max(0.0, (ms_item - ms_residual) / n_draws),
        ms_residual,
    )
