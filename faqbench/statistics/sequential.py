"""Deciding as soon as the truth allows: an interval that may be looked at after every draw.

A 95 % interval of a fixed number of draws that is looked at again and again misses the truth far more often
than in one case of twenty. The margins here hold at all looks at once, whenever and why ever one stops:

    P(at some look the true difference lies outside mean ± margin) <= alpha

Two sources of error have a margin each. The paired differences x_1, ..., x_n of n calibration draws, each
the mean over the same windows or items, with standard deviation s, have the e-value

    e_n(m) = (1 + n g)^(-1/2) ((1 + T^2 / nu) / (1 + T^2 / (nu (1 + n g))))^(n / 2)
    T = sqrt(n) (mean - m) / s,   nu = n - 1,   g = 1

which is the Bayes factor of the t-statistic when the effect, in standard deviations, is N(0, g). Under m it
is a martingale in the sequence of T that starts at 1, so by Ville's inequality it ever reaches 1 / alpha
with probability alpha at most. The m that are not rejected are those closer to the mean than

    draws_margin = s sqrt(nu u / n),   u = (q - 1) / (1 - q / (1 + n g)),   q^n = (1 + n g) / alpha^2

infinite while q >= 1 + n g: at alpha = 0.05 nothing is decided before the fifth draw.

The windows are the same in every draw, so their share of the error stays however many draws are added. It
is Student's margin of the items' means over draws, for right-or-wrong items no less than their exact one
(`errors.Items`), at the level alpha / 2^(k+1) after the windows were made more k times; these levels add up
to alpha. The sources are independent, so their margins add as errors do,
margin^2 = draws_margin^2 + items_margin^2 (Zou and Donner 2008, their "method of variance estimates
recovery"), and that the sum keeps alpha is shown by simulation: `tests/benchmarks/bench_settle.py`, which
also compares this rule with group-sequential ones. These save up to a seventh of the draws, but hold only
up to a budget that was declared before; here a larger budget may be asked for at any time.

Reference: Gönen, Johnson, Lu and Westfall 2005 (the Bayes factor); Hendriksen, de Heide and Grünwald 2021
and Wang and Ramdas, arXiv 2310.03722 (why it may be looked at after every draw).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from faqbench.statistics.draws import items_source

Array = np.ndarray[Any, np.dtype[Any]]
Verdict = Literal["lower", "higher", "equivalent", "undecided"]

_EFFECT_VARIANCE = 1.0  # g
_MOST_DRAWS = 100_000  # beyond which a projection is no help to anybody
# Below this share of the squared margin the draws' part no longer decides whether zero is inside.
_NEGLIGIBLE = 0.1


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is known of a difference at one look.

    Attributes:
        mean: over draws and items.
        draw_sd: standard deviation of the draws' differences; 0 where no draw can differ.
        draws_margin: how far the mean may be off on these windows; infinite while draws are too few.
        items_margin: how far these windows or items may be off from all others.
        n_draws: draws.
        n_items: items, windows in blocks.
    """

    mean: float
    draw_sd: float
    draws_margin: float
    items_margin: float
    n_draws: int
    n_items: int

    @property
    def margin(self) -> float:
        """Half of the interval's width."""
        return math.hypot(self.draws_margin, self.items_margin)

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.mean - self.margin

    @property
    def high(self) -> float:
        """Its upper end."""
        return self.mean + self.margin

    @property
    def items_dominate(self) -> bool:
        """Whether more windows or items would narrow the interval more than more draws."""
        return self.items_margin > self.draws_margin

    def is_in_vain(self, margin: float = 0.0) -> bool:
        """Say whether more draws would leave it undecided, wherever within their part the mean may move.

        Args:
            margin: as in `verdict`.
        """
        is_small = self.draws_margin**2 < _NEGLIGIBLE * self.margin**2
        farthest, nearest = abs(self.mean) + self.draws_margin, abs(self.mean) - self.draws_margin
        room = max(farthest, margin - max(nearest, 0.0))
        return self.draw_sd == 0.0 or is_small or room < self.items_margin

    def verdict(self, margin: float = 0.0) -> Verdict:
        """Say what the interval decides.

        Args:
            margin: within which a difference counts as none; 0 calls equal only what is equal to the bit.
        """
        if self.high < 0:
            return "lower"
        if self.low > 0:
            return "higher"
        is_inside = -margin <= self.low and self.high <= margin
        return "equivalent" if is_inside else "undecided"


def look_at(
    responses: Array, *, alpha: float, draws_differ: bool, n_growths: int = 0, weights: Array | None = None
) -> Look:
    """Return what paired differences tell.

    Args:
        responses: [n_draws, n_items], A - B.
        alpha: probability that some look's interval misses the truth.
        draws_differ: whether either method reads calibration data; else the one draw is all there are.
        n_growths: how often items were added before, on the strength of earlier looks.
        weights: [n_items] of items that are right or wrong, see `Items`; None for other responses.

    Raises:
        ValueError: for fewer than two items, or values that are not finite.
    """
    y = np.asarray(responses, dtype=np.float64)
    if y.ndim != 2 or y.shape[1] < 2 or not np.isfinite(y).all():
        raise ValueError(f"expected finite [n_draws, n_items >= 2], not shape {y.shape}")
    n_draws, n_items = y.shape
    draw_sd = float(y.mean(axis=1).std(ddof=1)) if n_draws > 1 else math.nan
    items_margin = max(items_source(y, weights).margins(alpha / 2 ** (n_growths + 2)))
    return Look(
        mean=float(y.mean()),
        draw_sd=draw_sd if draws_differ else 0.0,
        draws_margin=float(draws_margin(n_draws, draw_sd, alpha)) if draws_differ else 0.0,
        items_margin=items_margin,
        n_draws=n_draws,
        n_items=n_items,
    )


def draws_margin(n_draws: Array | int, draw_sd: Array | float, alpha: float) -> Array:
    """Return the draws' margin, valid at all looks at once; infinite where draws are too few.

    Args:
        n_draws: looked at so far; broadcast with `draw_sd`.
        draw_sd: standard deviation of their differences.
        alpha: probability that some look misses.
    """
    n, sd = np.broadcast_arrays(np.asarray(n_draws, np.float64), np.asarray(draw_sd, np.float64))
    growth = 1 + n * _EFFECT_VARIANCE
    log_q = (np.log(growth) / 2 - math.log(alpha)) * 2 / n
    is_enough = log_q < np.log(growth)
    q = np.exp(np.where(is_enough, log_q, 0.0))
    margins = sd * np.sqrt((n - 1) * (q - 1) / (1 - q / growth) / n)
    return np.where(is_enough, margins, np.inf)


def fewest_draws(alpha: float) -> int:
    """Return the number of draws before which nothing can be decided."""
    n = np.arange(2, 1000)
    return int(n[np.isfinite(draws_margin(n, 1.0, alpha))][0])


def draws_needed(look: Look, *, alpha: float, margin: float = 0.0) -> int | None:
    """Return how many draws would decide if mean and spread stay; None where no number of them would.

    Args:
        look: the last one.
        alpha: as it was looked at.
        margin: as in `Look.verdict`.
    """
    if look.draw_sd == 0.0 or not math.isfinite(look.draw_sd):
        return None
    room = max(abs(look.mean), margin - abs(look.mean))
    if room <= look.items_margin:
        return None
    n = np.unique(np.geomspace(look.n_draws + 1, _MOST_DRAWS, 2000).astype(int))
    enough = np.hypot(draws_margin(n, look.draw_sd, alpha), look.items_margin) < room
    return int(n[enough][0]) if enough.any() else None
