"""The error of a mean difference from several independent sources, and what a table of such may claim.

Calibration draws and evaluated items err independently, and each has its own quantiles: few draws have a
wide Student's distribution, right-or-wrong items a binomial one. With the margin of source s at a tail a

    P(mean - true > margin_s(a)) <= a

the margins add as errors do, each side by itself (Zou and Donner 2008, "method of variance estimates
recovery"):

    margin(a)^2 = sum over s of margin_s(a)^2

All is read off this one function, so that interval, test and equality never contradict each other: the
interval of confidence 1 - 2 a is mean ± margin(a); the p-value of "no difference" is twice the tail whose
margin reaches to 0; that of "within m" (two one-sided tests, Schuirmann 1987) is the tail whose margin fits
between the mean and the nearer end of (-m, m).

Satterthwaite's degrees of freedom in place of this are too many for two draws beside thirty items: their
interval of 95 % misses in 12 % of cases, this one in 4 % (reports/LOG.md, 2026-11-29).

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
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_MOST_STEPS = 45  # halvings, to nine digits of a tail
_LEAST_LOG_TAIL = -690.0  # about the smallest float
_MANY_DEGREES = 1e5  # from here on Student's distribution is the normal one


class Source(Protocol):
    """A source of error."""

    def margins(self, tail: float) -> tuple[float, float]:
        """Return how far below and above the mean the truth may lie, each but for a tail of up to 0.5."""

    @property
    def stderr(self) -> float:
        """The standard error, or what stands for it."""


@dataclass(frozen=True, kw_only=True)
class Student:
    """A mean of about normal values; infinite degrees of freedom are a normal error."""

    stderr: float
    degrees: float

    def margins(self, tail: float) -> tuple[float, float]:
        """Return Student's quantile, in the unit of the standard error, for both sides."""
        margin = 0.0 if self.stderr == 0.0 else self.stderr * _quantile(self.degrees, 1 - tail)
        return margin, margin


class Items:
    """A mean over items, each of which one run gets right, or the other, or both or neither.

    A plain standard error takes few items that differ for certainty: with none it is 0, with one of 500 the
    first item makes "equal" surer than none did. So the shares of items that went either way are bounded
    exactly (Clopper and Pearson 1934), with Student's margin where that is larger. Means over draws are
    parts of an item: they count as k items of size v, with the same sum and the same sum of squares.

    Args:
        differences: [n_items] of weight times -1, 0 or 1, or means of these over draws.
        weights: [n_items] what an item counts in the plain mean; 1 for one task, other numbers where tasks
            of unequal length count alike. Items of one weight are taken as one sample.
    """

    def __init__(self, differences: Array, weights: Array) -> None:
        sizes, group, counts = np.unique(weights, return_inverse=True, return_counts=True)
        parts = np.asarray(differences, dtype=np.float64) / weights
        self._n = counts.astype(np.float64)
        self._share = sizes * counts / len(parts)
        self._up, self._down = (_counted(np.maximum(side, 0.0), group) for side in (parts, -parts))
        spread = float(np.std(differences, ddof=1)) if len(parts) > 1 else 0.0
        self._student = Student(stderr=spread / math.sqrt(len(parts)), degrees=max(len(parts) - 1.0, 1.0))

    def margins(self, tail: float) -> tuple[float, float]:
        """Return either side's bound."""
        (less_up, more_up), (less_down, more_down) = (
            self._beside(*side, tail) for side in (self._up, self._down)
        )
        below, above = np.hypot(less_up, more_down), np.hypot(more_up, less_down)
        plain, _ = self._student.margins(tail)
        return max(math.hypot(*below * self._share), plain), max(math.hypot(*above * self._share), plain)

    @property
    def stderr(self) -> float:
        """The normal standard error with the same interval of 95 %."""
        return max(self.margins(0.025)) / _quantile(math.inf, 0.975)

    def _beside(self, count: Array, size: Array, tail: float) -> tuple[Array, Array]:
        """Return how far below and above its estimate the share of a side may lie."""
        from scipy.special import betaincinv

        rest = self._n - count
        low = np.where(count > 0, betaincinv(np.maximum(count, 1e-9), rest + 1, tail), 0.0)
        high = np.where(rest > 0, betaincinv(count + 1, np.maximum(rest, 1e-9), 1 - tail), 1.0)
        share = count / self._n
        return size * (share - low), size * (high - share)


def _counted(parts: Array, group: Array) -> tuple[Array, Array]:
    """Return, by group, as how many items of which size parts of items count; no parts are of size 1."""
    total, squares = np.bincount(group, parts), np.bincount(group, parts**2)
    size = np.where(total > 0, squares / np.where(total > 0, total, 1.0), 1.0)
    return total / size, size


@dataclass(frozen=True)
class Error:
    """The error of a mean difference; see the module."""

    sources: tuple[Source, ...]

    @property
    def stderr(self) -> float:
        """The standard error of all sources together."""
        return math.hypot(*(source.stderr for source in self.sources))

    def beside(self, source: Source) -> Error:
        """Return the error with one more source."""
        return Error((*self.sources, source))

    def margins(self, tail: float) -> tuple[float, float]:
        """Return how far below and above the mean the truth may lie, each but for a tail."""
        below, above = zip(*(source.margins(tail) for source in self.sources), strict=True)
        return math.hypot(*below), math.hypot(*above)

    def interval(self, mean: float, *, confidence: float = 0.95) -> tuple[float, float]:
        """Return the ends of the interval."""
        below, above = self.margins((1 - confidence) / 2)
        return mean - below, mean + above

    def p_value(self, effect: float) -> float:
        """Return the two-sided p-value of "no difference"."""
        return 2 * self._tail(abs(effect), above=effect < 0)

    def equivalence_p(self, effect: float, margin: float) -> float:
        """Return the p-value of "the difference is within the margin", which is above 0."""
        room = margin - abs(effect)
        return self._tail(room, above=effect > 0) if room > 0 else 1 - self._tail(-room, above=effect < 0)

    def detectable(self, *, alpha: float = 0.05, power: float = 0.8) -> float:
        """Return the smallest difference that a two-sided test at `alpha` finds with probability `power`.

        By the noncentral t-distribution whose quantile is this margin in standard errors.
        """
        from scipy.special import nctdtrinc, ndtri

        stderr, margin = self.stderr, max(self.margins(alpha / 2))
        if not stderr > 0:
            return stderr
        degrees = _degrees_with(margin / stderr, 1 - alpha / 2)
        if degrees >= _MANY_DEGREES:
            return margin + float(ndtri(power)) * stderr
        return stderr * float(nctdtrinc(degrees, 1 - power, margin / stderr))

    def _tail(self, distance: float, *, above: bool) -> float:
        """Return the tail whose margin on a side is a distance; at most 0.5."""
        side, stderr = int(above), self.stderr
        if math.isnan(stderr):
            return math.nan
        if stderr == 0.0:
            return 0.5 if distance == 0.0 else 0.0
        if len(self.sources) == 1 and isinstance(source := self.sources[0], Student):
            return min(0.5, _probability(source.degrees, -distance / source.stderr))
        low, high = _LEAST_LOG_TAIL, math.log(0.5)
        if self.margins(0.5)[side] >= distance:
            return 0.5
        for _ in range(_MOST_STEPS):
            middle = (low + high) / 2
            if self.margins(math.exp(middle))[side] > distance:
                low = middle
            else:
                high = middle
        return math.exp(high)


def _quantile(degrees: float, probability: float) -> float:
    from scipy.special import ndtri, stdtrit

    if math.isinf(degrees):
        return float(ndtri(probability))
    return float(stdtrit(degrees, probability))


def _probability(degrees: float, x: float) -> float:
    from scipy.special import ndtr, stdtr

    return float(ndtr(x) if math.isinf(degrees) else stdtr(degrees, x))


def _degrees_with(quantile: float, probability: float) -> float:
    """Return the degrees of freedom whose quantile this is, from 1 on."""
    low, high = 1.0, _MANY_DEGREES
    if quantile <= _quantile(high, probability):
        return high
    for _ in range(_MOST_STEPS):
        middle = math.sqrt(low * high)
        if _quantile(middle, probability) > quantile:
            low = middle
        else:
            high = middle
    return high


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
    error = Error((Student(stderr=difference_sd / math.sqrt(n), degrees=n - 1),))
    return error.detectable(alpha=alpha, power=power)


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
