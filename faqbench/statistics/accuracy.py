"""Accuracy: its standard error, and paired differences of two runs on the same items.

The test is McNemar's in its exact form: of the items that exactly one run gets right, each run is
equally likely to be the one, so the smaller count is binomial with p = 1/2. The interval is a
paired bootstrap: items are resampled with both answers kept together. Resampling n items from k
distinct differences is one multinomial draw, so ten thousand resamples cost milliseconds at any n.
A task of which no item tells the runs apart has no resampled error; its part of the interval is the exact
bound for an event never seen. Means over tasks are tested by their items' error (`errors.Items`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from faqbench.statistics.errors import Error, Items

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """The items on which two runs disagree, and the exact two-sided p-value."""

    n_only_a: int
    n_only_b: int
    p_value: float


@dataclass(frozen=True, kw_only=True)
class AccuracyDifference:
    """Accuracy of run A minus that of run B, on the same items, as a fraction.

    Attributes:
        difference: above 0 when A is better.
        low: lower end of the interval.
        high: its upper end.
        stderr: bootstrap standard error of the difference.
        p_value: exact McNemar for one task of right-or-wrong items; of `error` for means over tasks.
        error: of the items, by which equality is judged.
        n: items compared.
    """

    difference: float
    low: float
    high: float
    stderr: float
    p_value: float
    error: Error
    n: int


def accuracy_with_stderr(correct: Array) -> tuple[float, float]:
    """Return the mean and sd / sqrt(n) with n - 1 in the variance, as lm-eval does.

    Args:
        correct: [n_items], 0 or 1 (fractions are allowed).
    """
    values = np.asarray(correct, dtype=np.float64)
    if values.size < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(values.size)


def mcnemar(correct_a: Array, correct_b: Array) -> McNemar:
    """Test exactly whether two runs are right equally often, by the items that tell them apart."""
    from scipy.stats import binomtest

    difference = _differences(correct_a, correct_b)
    only_a, only_b = int((difference > 0).sum()), int((difference < 0).sum())
    p_value = 1.0 if only_a == only_b else binomtest(only_a, only_a + only_b).pvalue
    return McNemar(n_only_a=only_a, n_only_b=only_b, p_value=float(p_value))


def accuracy_difference(
    correct_a: Array,
    correct_b: Array,
    *,
    rng: np.random.Generator,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
) -> AccuracyDifference:
    """Compare two runs on one task: paired bootstrap interval, exact McNemar p-value."""
    return mean_accuracy_difference(
        [(correct_a, correct_b)], rng=rng, n_resamples=n_resamples, confidence=confidence
    )


def mean_accuracy_difference(
    tasks: Sequence[tuple[Array, Array]],
    *,
    rng: np.random.Generator,
    n_resamples: int = 10_000,
    confidence: float = 0.95,
) -> AccuracyDifference:
    """Compare the unweighted mean accuracy over tasks; items are resampled within each task.

    One task has McNemar's exact p-value, which the items' error only bounds.

    Args:
        tasks: per task, the correctness of the same items under run A and run B.
        rng: the source of the resamples.
        n_resamples: bootstrap resamples.
        confidence: of the interval.
    """
    differences = [_differences(a, b) for a, b in tasks]
    means = [_resampled_means(d, n_resamples, rng) for d in differences]
    resampled = np.mean(means, axis=0)
    estimate = float(np.mean([d.mean() for d in differences]))
    tail = (1 - confidence) / 2
    low, high = (float(q) for q in np.quantile(resampled, [tail, 1 - tail]))
    unseen = math.hypot(*(1 - tail ** (1 / len(d)) for d in differences if not d.any())) / len(tasks)
    weights = item_weights([len(d) for d in differences])
    error = Error((Items(np.concatenate(differences) * weights, weights),))
    return AccuracyDifference(
        difference=estimate,
        low=estimate - math.hypot(estimate - low, unseen),
        high=estimate + math.hypot(high - estimate, unseen),
        stderr=float(resampled.std()),
        p_value=mcnemar(*tasks[0]).p_value if len(tasks) == 1 else error.p_value(estimate),
        error=error,
        n=len(weights),
    )


def item_weights(n_items: Sequence[int]) -> Array:
    """Return what each item of several tasks counts, so that their plain mean is the mean over tasks."""
    n, n_tasks = sum(n_items), len(n_items)
    return np.repeat([n / (k * n_tasks) for k in n_items], n_items)


def _differences(correct_a: Array, correct_b: Array) -> Array:
    a, b = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise ValueError(f"only equal lists of items can be paired, not {a.shape} and {b.shape}")
    return a - b


def _resampled_means(difference: Array, n_resamples: int, rng: np.random.Generator) -> Array:
    values, counts = np.unique(difference, return_counts=True)
    draws = rng.multinomial(len(difference), counts / len(difference), size=n_resamples)
    means: Array = draws @ values / len(difference)
    return means
