"""Forest plot of the paired differences from the baseline, perplexity and accuracy side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from faqbench import formatting
from faqbench.report import facts
from faqbench.report.analysis import Analysis, Contest
from faqbench.report.comparisons import Comparison
from faqbench.report.difference_tables import difference
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing, how_many, setting_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 48
_FAR = 25.0
_Pair = tuple[Contest, Comparison]


def draw_differences(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one dot and interval per comparison, filled where it stands after Holm's correction."""
    there = [(k, c) for k, c in analysis.main.comparisons if not c.refused and math.isfinite(c.low)]
    pairs = _worth_drawing(there)
    groups = [[p for p in pairs if p[1].is_ratio], [p for p in pairs if not p[1].is_ratio]]
    groups = [group for group in groups if group]
    if not groups:
        return None
    heights = [0.8 + 0.24 * len(group) for group in groups]
    figure, all_axes = style.new_figure(style.WIDTH, sum(heights), len(groups), 1, height_ratios=heights)
    baseline = facts.display_method(analysis.baseline or "")
    for axes, group in zip(all_axes, groups, strict=True):
        _plot(axes, group, several=len(analysis.contests) > 1)
        unit = "%" if group[0][1].is_ratio else "points"
        axes.set_title(style.label(_what(group), 38))
        axes.set_xlabel(f"difference from {style.label(baseline, 24)}, {unit}")
    firm = [c for _, c in there if c.is_significant]
    return Drawing(
        figure=figure,
        caption=f"Paired differences from {baseline} with 95 % intervals of each comparison by "
        "itself; perplexity is better to the left of the line, accuracy to its right. Filled: "
        "significant after Holm's correction; hollow: not decidable, or of one calibration set "
        "alone; an arrow: beyond the axis." + how_many(len(pairs), len(there), "differences"),
        alt=f"{len(firm)} of {len(there)} differences from {baseline} are significant after Holm.",
        header=("setting", "method", "measured on", "difference", "low", "high", "p after Holm"),
        rows=tuple(_data_row(contest, c) for contest, c in there),
    )


def _worth_drawing(pairs: list[_Pair]) -> list[_Pair]:
    """Return what a reader can take in: of many, first single tasks go, further protocols, accuracy."""
    if len(pairs) > _MOST_ROWS and any(c.column.kind == "mean_acc" for _, c in pairs):
        pairs = [p for p in pairs if p[1].column.kind != "acc"]
    if len(pairs) > _MOST_ROWS:
        firsts = {c.is_ratio: c.column.label for _, c in reversed(pairs)}
        pairs = [p for p in pairs if p[1].column.label == firsts[p[1].is_ratio]]
    if len(pairs) > _MOST_ROWS:
        pairs = [p for p in pairs if p[1].is_ratio] or pairs
    return pairs[:_MOST_ROWS]


def _plot(axes: Axes, pairs: list[_Pair], *, several: bool) -> None:
    """Draw a row per pair: the difference and its interval."""
    limit = _limit([difference(c) for _, c in pairs])
    names = []
    several_columns = len({c.column.label for _, c in pairs}) > 1
    for y, (contest, c) in enumerate(pairs):
        value, low, high = difference(c)
        paint = style.color(c.a.method)
        setting = f", {setting_label(contest)}" if several else ""
        where = f" · {c.column.label}" if several_columns else ""
        names.append(style.label(f"{c.a.short_name}{setting}{where}", 42))
        if y and contest is not pairs[y - 1][0]:
            axes.axhline(y - 0.5, color=style.RULE, linewidth=0.8, zorder=0.5)
        if limit is not None and abs(value) > limit:
            _write_beyond(axes, y, value, limit, paint)
            continue
        axes.plot([low, high], [y, y], color=paint, linewidth=1.4, solid_capstyle="butt")
        axes.plot(
            [value],
            [y],
            marker=style.marker(c.a.method),
            color=paint,
            markerfacecolor=paint if c.is_significant else "white",
        )
    if limit is not None:
        axes.set_xlim(-limit, limit)
    axes.axvline(0, color=style.QUIET, linewidth=1.0, zorder=1.5)
    style.name_rows(axes, names)


def _what(pairs: list[_Pair]) -> str:
    labels = list(dict.fromkeys(c.column.label for _, c in pairs))
    name = "perplexity" if pairs[0][1].is_ratio else "accuracy"
    return f"{name} on {labels[0]}" if len(labels) == 1 and name == "perplexity" else name


def _limit(differences: list[tuple[float, float, float]]) -> float | None:
    """Return where to end the axis so that one failure does not flatten the rest, or None."""
    near = [d for d in differences if abs(d[0]) <= _FAR]
    if not near or len(near) == len(differences):
        return None
    return max(1.0, 1.25 * max(abs(end) for d in near for end in d))


def _write_beyond(axes: Axes, y: int, value: float, limit: float, paint: str) -> None:
    text = f"{formatting.signed(value, 0)} ▸" if value > 0 else f"◂ {formatting.signed(value, 0)}"
    side = "right" if value > 0 else "left"
    edge = limit if value > 0 else -limit
    axes.text(edge * 0.98, y, text, ha=side, va="center", fontsize=8.5, color=paint)


def _data_row(contest: Contest, c: Comparison) -> tuple[str, ...]:
    numbers = tuple(formatting.signed(x, 2) for x in difference(c))
    p = formatting.p_value(c.p_holm)
    return (contest.label, c.a.short_name, c.column.label, *numbers, p)
