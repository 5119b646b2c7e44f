"""Perplexity: its standard error, and the ratio of two perplexities on the same tokens.

perplexity = exp(m) with m the mean negative log-likelihood; by the delta method stderr(perplexity) =
perplexity * stderr(m). Two runs are compared through the difference of their window means (`windows`):
log(ratio) = mean(d), and the interval excludes 1 exactly when p < 1 - confidence.

Everything is computed in logarithms. A perplexity or ratio beyond 1e100, the most that a record holds, is
infinite: it measures nothing but that a model is broken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from faqbench.statistics.windows import Array, mean_difference, mean_with_stderr

_LARGEST = math.log(1e100)


@dataclass(frozen=True, kw_only=True)
class PerplexityRatio:
    """Perplexity of run A divided by that of run B, on the same tokens.

    Attributes:
        log_ratio: the mean difference; below 0 when A is better.
        log_low: lower end of its interval.
        log_high: its upper end.
        stderr_log: its standard error.
        p_value: two-sided, for ratio = 1; NaN with fewer than two windows.
        n_windows: windows compared.
        block_length: windows per bootstrap block.
    """

    log_ratio: float
    log_low: float
    log_high: float
    stderr_log: float
    p_value: float
    n_windows: int
    block_length: int

    @property
    def ratio(self) -> float:
        """The ratio itself; below 1 when A is better."""
        return exp(self.log_ratio)

    @property
    def low(self) -> float:
        """Lower end of the ratio's interval."""
        return exp(self.log_low)

    @property
    def high(self) -> float:
        """Its upper end."""
        return exp(self.log_high)


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


def perplexity_ratio(
    nll_a: Array,
    nll_b: Array,
    *,
    rng: np.random.Generator,
    n_resamples: int = 10_000,
    block_length: int | None = None,
    confidence: float = 0.95,
) -> PerplexityRatio:
    """Compare two runs on the same tokens by a block bootstrap over windows.

    Args:
        nll_a: [n_windows, n_tokens], nats. Window means [n_windows, 1] give the same answer.
        nll_b: of the same shape, on the same tokens.
        rng: the source of the resamples.
        n_resamples: bootstrap resamples.
        block_length: windows per block; about n_windows^(1/3) by default.
        confidence: of the interval.

    Raises:
        ValueError: when the shapes differ or a value is not finite.
    """
    found = mean_difference(
        nll_a,
        nll_b,
        rng=rng,
        n_resamples=n_resamples,
        block_length=block_length,
        confidence=confidence,
    )
    return PerplexityRatio(
        log_ratio=found.difference,
        log_low=found.low,
        log_high=found.high,
        stderr_log=found.stderr,
        p_value=found.p_value,
        n_windows=found.n_windows,
        block_length=found.block_length,
    )
