"""Several calibration draws: the mean over draws, and how much of its error each source brings.

The response y[d, i] of draw d on item i (an item is a task's document or a block of windows) is
split by the two-way random effects model without replication

    y[d, i] = mu + draw_d + item_i + residual_di

whose variances follow from the mean squares of draws, items and residuals. Another draw of both the
calibration set and the evaluation items moves the grand mean with the variance

    var(mean) = var_draw / D + var_item / I + var_residual / (D I)
              = (MS_draw + MS_item - MS_residual) / (D I)

with Satterthwaite's degrees of freedom. So three draws cannot claim what only the items' number
would support, nor the reverse. With one draw the draw's part is unknown (NaN), and the interval
speaks about this calibration set alone.

Reference: Cornfield and Tukey 1956; Satterthwaite 1946.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from faqbench.statistics.windows import student

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
        degrees: Satterthwaite's degrees of freedom.
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
    degrees: float
    n_draws: int
    n_items: int
    draw_variance: float
    item_variance: float
    residual_variance: float


def aggregate_draws(responses: Array, *, confidence: float = 0.95) -> DrawSummary:
    """Aggregate responses over draws and items.

    Args:
        responses: [n_draws, n_items], for a comparison the paired differences A - B.
        confidence: of the interval.

    Raises:
        ValueError: for fewer than two items, or values that are not finite.
    """
    y = np.asarray(responses, dtype=np.float64)
    if y.ndim != 2 or y.shape[1] < 2 or not np.isfinite(y).all():
        raise ValueError(f"expected finite [n_draws, n_items >= 2], not shape {y.shape}")
    n_draws, n_items = y.shape
    variance, degrees, parts = _one_draw(y) if n_draws == 1 else _two_way(y)
    mean, stderr = float(y.mean()), math.sqrt(variance)
    margin, p_value = student(mean, stderr, degrees, confidence)
    return DrawSummary(
        mean=mean,
        stderr=stderr,
        low=mean - margin,
        high=mean + margin,
        p_value=p_value,
        degrees=degrees,
        n_draws=n_draws,
        n_items=n_items,
        draw_variance=parts[0],
        item_variance=parts[1],
        residual_variance=parts[2],
    )


@dataclass(frozen=True, kw_only=True)
class WidenedDraw:
    """A single draw's difference with the spread between draws in its error."""

    stderr: float
    low: float
    high: float
    p_value: float
    degrees: float


def with_draw_variance(
    effect: float,
    stderr: float,
    degrees: float,
    draw_variance: float,
    draw_degrees: float,
    *,
    confidence: float = 0.95,
) -> WidenedDraw:
    """Return the error of one draw's difference when draws are known to have a variance.

    var = stderr^2 + draw_variance, with Satterthwaite's degrees of freedom.

    Args:
        effect: the difference on the one draw.
        stderr: its error over windows or items.
        degrees: of freedom of that error.
        draw_variance: between draws, from elsewhere.
        draw_degrees: of freedom of that variance.
        confidence: of the interval.
    """
    variance = stderr**2 + draw_variance
    parts = stderr**4 / max(degrees, 1.0) + draw_variance**2 / draw_degrees
    freedom = variance**2 / parts if parts else math.inf
    margin, p_value = student(effect, math.sqrt(variance), freedom, confidence)
    return WidenedDraw(
        stderr=math.sqrt(variance),
        low=effect - margin,
        high=effect + margin,
        p_value=p_value,
        degrees=freedom,
    )


def _one_draw(y: Array) -> tuple[float, float, tuple[float, float, float]]:
    variance = float(y[0].var(ddof=1))
    return variance / y.shape[1], y.shape[1] - 1.0, (math.nan, variance, math.nan)


def _two_way(y: Array) -> tuple[float, float, tuple[float, float, float]]:
    """Return var(mean), its degrees of freedom, and the draw, item and residual variances."""
    n_draws, n_items = y.shape
    by_draw, by_item = y.mean(axis=1), y.mean(axis=0)
    residual = y - by_draw[:, None] - by_item[None, :] + y.mean()
    freedom = np.array([n_draws - 1, n_items - 1, (n_draws - 1) * (n_items - 1)], dtype=np.float64)
    squares = np.array(
        [n_items * by_draw.var() * n_draws, n_draws * by_item.var() * n_items, float((residual**2).sum())]
    )
    ms_draw, ms_item, ms_residual = (float(x) for x in squares / freedom)
    parts = (
        max(0.0, (ms_draw - ms_residual) / n_items),
        max(0.0, (ms_item - ms_residual) / n_draws),
        ms_residual,
    )
    # A component cannot be negative; if its estimate is, the larger mean square is used.
    kept = [(ms, df) for ms, df in zip((ms_draw, ms_item), freedom[:2], strict=True)]
    combined = ms_draw + ms_item - ms_residual
    if combined <= max(ms_draw, ms_item):
        combined, degrees = max(kept)
        return combined / y.size, float(degrees), parts
    spread = sum(ms**2 / df for ms, df in kept) + ms_residual**2 / freedom[2]
    return combined / y.size, float(combined**2 / spread), parts
