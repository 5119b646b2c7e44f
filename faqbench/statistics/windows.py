"""Means over windows of text, perplexities among them: a standard error, and the difference of two runs.

Tokens of one window depend on each other, so the unit of sampling is the window: the standard error of a
mean is sd(window means) / sqrt(n_windows). perplexity = exp(m) with m the mean negative log-likelihood, and
by the delta method stderr(perplexity) = perplexity * stderr(m).

Two runs on the same windows are compared through d_i, the difference of their window means; for perplexity
mean(d) is the logarithm of the ratio. Windows are consecutive pieces of text, so neighbours may depend on
each other too; the standard error of mean(d) therefore comes from a circular block bootstrap (Politis and
Romano 1992) with blocks of about n^(1/3) windows. Interval and p-value both use Student's t with b - 1
degrees of freedom, b being the number of blocks, and the factor sqrt(b / (b - 1)) that undoes the
bootstrap's narrowness for few blocks (Hesterberg 2015, arXiv 1411.5279): so the interval excludes 0 exactly
when p < 1 - confidence, and a large effect gets a small p-value that survives a correction for many
comparisons.

A perplexity or ratio beyond 1e100, the most that a record holds, is infinite: it measures nothing but that
a model is broken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from faqbench.statistics.errors import Error, Student

Array = np.ndarray[Any, np.dtype[Any]]
_LARGEST = math.log(1e100)


@dataclass(frozen=True, kw_only=True)
class WindowDifference:
    """Mean of run A minus mean of run B, on the same windows.

    Attributes:
        difference: in the unit of the values.
        low: lower end of the interval.
        high: its upper end.
        stderr: standard error of the difference; NaN with fewer than two windows.
        p_value: two-sided, for no difference; NaN with fewer than two windows.
        error: what interval and p-value are read off.
        n_windows: windows compared.
        block_length: windows per bootstrap block.
    """

    difference: float
    low: float
    high: float
    stderr: float
    p_value: float
    error: Error
    n_windows: int
    block_length: int

    @property
    def ratio(self) -> tuple[float, float, float]:
        """Of losses: perplexity of A over that of B, below 1 when A is better, and its interval's ends."""
        return exp(self.difference), exp(self.low), exp(self.high)


def mean_with_stderr(values: Array) -> tuple[float, float]:
    """Return the mean and its standard error over windows; NaN error for a single window.

    Args:
        values: [n_windows, n_tokens], of any number type.
    """
    windows = window_means(values)
    if len(windows) < 2:
        return float(windows.mean()), math.nan
    return float(windows.mean()), float(windows.std(ddof=1)) / math.sqrt(len(windows))


def mean_difference(
    values_a: Array,
    values_b: Array,
    *,
    rng: np.random.Generator,
    n_resamples: int = 10_000,
    block_length: int | None = None,
    confidence: float = 0.95,
) -> WindowDifference:
    """Compare the means of two runs on the same tokens by a block bootstrap over windows.

    Args:
        values_a: [n_windows, n_tokens]. Window means [n_windows, 1] give the same answer.
        values_b: of the same shape, on the same tokens.
        rng: the source of the resamples.
        n_resamples: bootstrap resamples.
        block_length: windows per block; about n_windows^(1/3) by default.
        confidence: of the interval.

    Raises:
        ValueError: when the shapes differ or a value is not finite.
    """
    if values_a.shape != values_b.shape:
        raise ValueError(f"only equal shapes can be paired, not {values_a.shape} and {values_b.shape}")
    difference = window_means(values_a) - window_means(values_b)
    if not np.isfinite(difference).all():
        raise ValueError("a value is not finite")
    n = len(difference)
    length = min(block_length or block_length_for(n), max(n // 2, 1))
    mean = float(difference.mean())
    stderr, n_blocks = math.nan, 1
    if n > 1:
        stderr, n_blocks = _block_bootstrap_stderr(difference, length, n_resamples, rng)
    error = Error((Student(stderr=stderr, degrees=n_blocks - 1),))
    low, high = error.interval(mean, confidence=confidence)
    return WindowDifference(
        difference=mean,
        low=low,
        high=high,
        stderr=stderr,
        p_value=error.p_value(mean),
        error=error,
        n_windows=n,
        block_length=length,
    )


def block_length_for(n_windows: int) -> int:
    """Return about n^(1/3), the rate at which the bootstrap's variance converges fastest."""
    return max(1, round(math.cbrt(n_windows)))


def window_means(values: Array) -> Array:
    """Return the mean of each window in float64, [n_windows].

    Raises:
        ValueError: for anything but [n_windows, n_tokens] with at least one of each.
    """
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected [n_windows, n_tokens], not shape {values.shape}")
    means: Array = values.mean(axis=1, dtype=np.float64)
    return means


def _block_bootstrap_stderr(
    difference: Array, length: int, n_resamples: int, rng: np.random.Generator
) -> tuple[float, int]:
    """Return the standard error of the mean, few-blocks factor included, and how many blocks."""
    n = len(difference)
    n_blocks = math.ceil(n / length)
    centred = difference - difference.mean()
    # Sums of `length` windows from every start, the series wrapped into a circle.
    wrapped = np.concatenate([[0.0], np.cumsum(np.concatenate([centred, centred[: length - 1]]))])
    sums = wrapped[length:] - wrapped[:n]
    starts = rng.integers(0, n, size=(n_resamples, n_blocks))
    means = sums[starts].sum(axis=1) / (n_blocks * length)
    return float(means.std()) * math.sqrt(n_blocks / (n_blocks - 1)), n_blocks


def exp(x: float) -> float:
    """Return e to the power of x, infinite beyond 1e100."""
    return math.exp(x) if x < _LARGEST else math.inf


def percent_of_log(x: float) -> float:
    """Return a logarithm of a ratio as the ratio's distance from 1, in percent."""
    return 100 * math.expm1(x) if x < 1 else 100 * (exp(x) - 1)


def perplexity_with_stderr(nll: Array) -> tuple[float, float]:
    """Return the perplexity and its standard error over windows; NaN error for a single window.

    An infinite perplexity has no error that means anything: it is NaN.

    Args:
        nll: [n_windows, n_tokens] negative log-likelihoods in nats, of any float type.
    """
    mean, stderr = mean_with_stderr(nll)
    value = exp(mean)
    return value, value * stderr if math.isfinite(value) else math.nan
