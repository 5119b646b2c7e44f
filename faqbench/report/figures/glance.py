"""The first screen's forest plot: each method's difference from the baseline, axes for each width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from faqbench import formatting
from faqbench.report import facts
from faqbench.report.analysis import Analysis
from faqbench.report.columns import in_words
from faqbench.report.comparisons import Comparison
from faqbench.report.difference_tables import difference, difference_unit, in_unit
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing, how_many
from faqbench.report.glance import telling_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_METHODS = 12
_MOST_WIDTHS = 3
_FAR = 25.0  # a failure further away is an arrow, so that it does not flatten the rest
_Series = dict[str, list[Comparison]]


def draw_glance(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw a row per method, with an interval for each setting."""
    pairs = [(k, c) for k, c in telling_pairs(analysis) if math.isfinite(c.low)]
    by_widths: dict[str, _Series] = {}
    for contest, c in pairs:
        series = by_widths.setdefault(contest.widths, {})
        series.setdefault(c.a.short_name, []).append(c)
    if not by_widths:
        return None
    widths = sorted(by_widths)[:_MOST_WIDTHS]
    names = _in_order([by_widths[w] for w in widths])
    shown = names[:_MOST_METHODS]
    height = 1.0 + 0.27 * len(shown)
    figure, all_axes = style.new_figure(style.WIDTH, height, 1, len(widths))
    column, baseline = pairs[0][1].column, facts.display_method(analysis.baseline or "")
    for i, (axes, width) in enumerate(zip(all_axes, widths, strict=True)):
        _plot(axes, [by_widths[width].get(name, []) for name in shown])
        style.name_rows(axes, [style.label(n, 26) if i == 0 else "" for n in shown])
        axes.set_ylim(len(shown) - 0.1, -0.6)  # room for what is written below the last row
        axes.set_title(width if width.startswith("W") else f"{width} bits")
        side = "right" if column.higher_is_better else "left"
        axes.set_xlabel(f"{difference_unit(column)}, {side} is better")
    n_settings = max(len(cs) for series in by_widths.values() for cs in series.values())
    return Drawing(
        figure=figure,
        caption=f"{column.label}: each method's difference from {baseline} with its 95 % interval"
        + (f", one line for each of up to {n_settings} settings" if n_settings > 1 else "")
        + ". Filled: significant after Holm's correction; hollow: not decidable, or of one calibration "
        "set alone; an arrow: beyond the axis."
        + ("" if analysis.margin is None else f" Grey band: the margin, {analysis.margin}.")
        + how_many(len(shown), len(names), "methods"),
        alt="; ".join(_words(w, by_widths[w]) for w in widths) + ".",
        header=("bits", "setting", "method", "difference", "low", "high", "verdict"),
        rows=tuple(
            (
                contest.widths,
                contest.label,
                c.a.short_name,
                *(formatting.signed(x, 2) for x in difference(c)),
                c.verdict,
            )
            for contest, c in pairs
        ),
    )


def _in_order(all_series: list[_Series]) -> list[str]:
    """Return the methods, the best first by the mean of their differences at the fewest bits."""
    names = list(dict.fromkeys(name for series in all_series for name in series))

    def rank(name: str) -> float:
        points = next(series[name] for series in all_series if name in series)
        sign = -1 if points[0].column.higher_is_better else 1
        return sign * fmean(c.effect for c in points)

    return sorted(names, key=rank)


def _plot(axes: Axes, rows: list[list[Comparison]]) -> None:
    """Draw a row per method: the differences from the baseline, one per setting."""
    limit = _limit([difference(c) for cs in rows for c in cs])
    for y, points_of_row in enumerate(rows):
        beyond = [difference(c)[0] for c in points_of_row if abs(difference(c)[0]) > limit]
        if beyond:
            aside = 0.5 if len(beyond) < len(points_of_row) else 0.0  # not on top of those that are drawn
            paint = style.color(points_of_row[0].a.method)
            _write_beyond(axes, y + aside, max(beyond, key=abs), limit, paint)
        for i, c in enumerate(points_of_row):
            value, low, high = difference(c)
            if abs(value) > limit:
                continue
            place = y + 0.62 * (i - (len(points_of_row) - 1) / 2) / max(len(points_of_row), 3)
            paint = style.color(c.a.method)
            axes.plot([low, high], [place] * 2, color=paint, linewidth=1.2, solid_capstyle="butt")
            axes.plot(
                [value],
                [place],
                marker=style.marker(c.a.method),
                markersize=5 if len(points_of_row) == 1 else 3.6,
                color=paint,
                markerfacecolor=paint if c.is_significant else "white",
            )
    axes.set_xlim(-limit, limit)
    margin = next((in_unit(c, c.margin) for cs in rows for c in cs if c.margin > 0), None)
    if margin is not None:
        axes.axvspan(-margin, margin, color=style.RULE, alpha=0.6, zorder=0.2, linewidth=0)
    axes.axvline(0, color=style.QUIET, linewidth=1.0, zorder=1.5)


def _limit(differences: Sequence[tuple[float, float, float]]) -> float:
    """Return how far the axis goes either way: beyond the intervals of all differences that lie on it.

    Args:
        differences: each with the ends of its interval. Those beyond `_FAR` lie on it where the others
            bring it there.
    """
    reached = [max(map(abs, d)) for d in differences if abs(d[0]) <= _FAR]
    limit = 1.12 * max(reached, default=_FAR)
    for value, low, high in sorted(differences, key=lambda d: abs(d[0])):
        if abs(value) <= limit:
            limit = max(limit, 1.04 * abs(low), 1.04 * abs(high))
    return limit


def _write_beyond(axes: Axes, y: float, value: float, limit: float, paint: str) -> None:
    text = formatting.signed(value, 0)
    axes.text(
        math.copysign(limit * 0.98, value),
        y,
        f"{text} ▸" if value > 0 else f"◂ {text}",
        ha="right" if value > 0 else "left",
        va="center",
        fontsize=8,
        color=paint,
    )


def _words(width: str, series: _Series) -> str:
    firm = [
        f"{name} {'better' if points[0].a_is_better else 'worse'}"
        for name, points in series.items()
        if all(c.is_significant for c in points)
    ]
    return f"At {in_words(width)} {', '.join(firm) or 'nothing'} in all settings"
