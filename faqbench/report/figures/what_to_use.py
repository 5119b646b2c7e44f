"""What to use: every method's best number over its bits per weight, those on the front by name."""

from __future__ import annotations

from faqbench import formatting
from faqbench.report.analysis import Analysis
from faqbench.report.columns import Column, Row, estimate_cell, metric_scale, metric_unit
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import estimates, style
from faqbench.report.figures.drawing import Drawing
from faqbench.report.figures.pareto import Points, front_of, plot_front
from faqbench.report.glance import telling_column
from faqbench.report.panels import Panel

TITLE = "What to use"


def draw(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw the deciding measure, and the divergence from full precision where it was measured."""
    panel, column = analysis.panel, telling_column(analysis)
    columns = [c for c in panel.fidelity if column and c.kind == "kl" and c.task == column.task]
    found = [(c, _best_points(panel, c)) for c in ([column] if column else []) + columns[:1]]
    found = [(c, points) for c, points in found if len({x for x, *_ in points}) > 1]
    if not found:
        return None
    figure, all_axes = style.new_figure(style.WIDTH, 3.0, 1, len(found))
    for axes, (c, points) in zip(all_axes, found, strict=True):
        plot_front(axes, panel, c, points)
        axes.set_title(style.label(c.task, 30))
        axes.set_ylabel(metric_unit(c))
        axes.set_xlabel("bits per weight")
    style.add_legend(figure, all_axes)
    return Drawing(
        figure=figure,
        caption="Each method at each bit-width in the setting that suits it best, by its bits per weight, "
        "scales and zero points included. The grey steps are the front, whose methods are named: nothing "
        "smaller is better by value, significance aside. The dashed line is full precision.",
        alt="On the front: "
        + "; ".join(
            f"{row.name} at {formatting.number(x, 2)} bits per weight"
            for x, _, row, _ in front_of(found[0][1], found[0][0])
        )
        + ".",
        header=("method", "bits per weight", "measured on", "value", "on the front"),
        rows=tuple(
            (
                f"{row.name}, {row.widths} bits",
                formatting.number(x, 3),
                c.label,
                estimate_cell(c, e).text,
                "yes" if any(row is other for *_, other, _ in front_of(points, c)) else "",
            )
            for c, points in found
            for x, _, row, e in points
        ),
    )


def _best_points(panel: Panel, column: Column) -> Points:
    """Return per method, variant and width the point of the setting with the best value."""
    scale, _ = metric_scale(column)
    sign = -1 if column.higher_is_better else 1
    points: Points = [
        (row.runs[0].bits_per_weight, e.value * scale, row, e)
        for row, e in estimates.measured(panel.rows, column)
        if row.runs[0].bits_per_weight is not None
    ]
    best: dict[tuple[str, str], Row] = {}
    for _, _, row, _ in sorted(points, key=lambda p: sign * p[1]):
        best.setdefault((row.short_name, row.widths), row)
    return [point for point in points if best[point[2].short_name, point[2].widths] is point[2]]
