"""Forest plot of the paired differences from the baseline, perplexity and accuracy side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from faqbench.report import facts, formatting
from faqbench.report.analysis import Analysis, Contest
from faqbench.report.comparisons import Comparison
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing
from faqbench.report.tables import difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Forest plot of the paired differences"
_MOST_ROWS = 60


def draw(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one dot and interval per comparison, filled where it stands after Holm's correction."""
    pairs = [(k, c) for k, c in analysis.comparisons if not c.refused and math.isfinite(c.low)]
    pairs = pairs[:_MOST_ROWS]
    groups = [[p for p in pairs if p[1].is_ratio], [p for p in pairs if not p[1].is_ratio]]
    groups = [group for group in groups if group]
    if not groups:
        return None
    heights = [0.85 + 0.27 * len(group) for group in groups]
    figure, all_axes = style.new_figure(
        style.WIDTH, sum(heights), len(groups), 1, height_ratios=heights
    )
    baseline = facts.display_method(analysis.baseline or "")
    for axes, group in zip(all_axes, groups, strict=True):
        _plot(axes, group, several=len(analysis.contests) > 1)
        ratio = group[0][1].is_ratio
        axes.set_title("Perplexity, lower is better" if ratio else "Accuracy, higher is better")
        axes.set_xlabel(f"difference from {baseline}, {'%' if ratio else 'points'}")
    firm = [c for _, c in pairs if c.is_significant]
    return Drawing(
        figure=figure,
        caption=f"Paired differences from {baseline} with 95 % intervals of each comparison by "
        "itself. Filled: significant after Holm's correction. Hollow: not decidable.",
        alt=f"{len(firm)} of {len(pairs)} differences from {baseline} are significant after Holm.",
        header=("setting", "method", "measured on", "difference", "low", "high", "p after Holm"),
        rows=tuple(_data_row(contest, c) for contest, c in pairs),
    )


def _plot(axes: Axes, pairs: list[tuple[Contest, Comparison]], *, several: bool) -> None:
    names = []
    for y, (contest, c) in enumerate(pairs):
        value, low, high = difference(c)
        paint = style.color(c.a.method)
        axes.plot([low, high], [y, y], color=paint, linewidth=1.4, solid_capstyle="butt")
        axes.plot(
            [value],
            [y],
            marker=style.marker(c.a.method),
            color=paint,
            markerfacecolor=paint if c.is_significant else "white",
        )
        setting = f", {contest.label}" if several else ""
        names.append(style.label(f"{c.a.short_name}{setting} · {c.column.label}", 44))
    low, high = axes.get_xlim()
    if high > 40 and min(difference(c)[2] for _, c in pairs) < 0.2 * high:
        axes.set_xscale("symlog", linthresh=10, linscale=1.5)
        axes.set_xlim(low, high * 1.2)
        ticks = [
            t for t in (-100, -50, -10, -5, 0, 5, 10, 50, 100, 1000, 10000) if low <= t <= high
        ]
        axes.set_xticks(ticks, [formatting.signed(t, 0) for t in ticks])
    axes.axvline(0, color=style.QUIET, linewidth=1.0, zorder=1.5)
    style.name_rows(axes, names)


def _data_row(contest: Contest, c: Comparison) -> tuple[str, ...]:
    numbers = tuple(formatting.signed(x, 2) for x in difference(c))
    p = formatting.p_value(c.p_holm)
    return (contest.label, c.a.short_name, c.column.label, *numbers, p)
