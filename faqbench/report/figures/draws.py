"""Spread over calibration draws: how far each draw is from its method's mean."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from faqbench import formatting
from faqbench.report import facts
from faqbench.report.analysis import Analysis
from faqbench.report.columns import Column, Row, estimate_cell, metric_scale
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing, row_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 30


def draw_draws(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw a row of dots per method and setting, perplexity and accuracy beside each other."""
    panel = analysis.panel
    columns = panel.of_kind("perplexity")[:1] + (panel.of_kind("mean_acc", "acc")[-1:])
    there = [r for r in panel.rows if r.is_calibrated and len(_draws(r, columns[:1])[0]) > 1]
    rows = there[:_MOST_ROWS]
    if not rows:
        return None
    height = 0.9 + 0.27 * len(rows)
    figure, all_axes = style.new_figure(style.WIDTH, height, 1, len(columns))
    names = [row_label(row) for row in rows]
    for i, (axes, column) in enumerate(zip(all_axes, columns, strict=True)):
        _plot(axes, rows, column)
        style.name_rows(axes, names if i == 0 else [""] * len(names))
        axes.set_title(style.label(column.label))
        axes.set_xlabel("from the mean, " + ("points" if column.is_percent else "%"))
    left_out = len(there) - len(rows)
    return Drawing(
        figure=figure,
        caption="Every dot is one calibration draw, as its distance from the mean of its method's "
        "draws; the bar is one standard deviation to each side. What a short bar says rests on as "
        "many draws as there are dots." + (f" {left_out} rows are left to the table." if left_out else ""),
        alt=_alt(rows, names, columns[0]),
        header=("method", "measured on", "draws", "mean", "standard deviation", "each draw (seed)"),
        rows=tuple(
            _data_row(row, column)
            for column in columns
            for row in there
            if len(_draws(row, [column])[0]) > 1
        ),
    )


def _draws(row: Row, columns: list[Column]) -> list[list[tuple[str, float]]]:
    """Return (seed, value) of a row's draws, per column."""
    points = []
    for column in columns:
        parts = column.parts or (column,)
        draws = []
        for run in row.runs:
            metrics = [part.metric_of(run) for part in parts]
            values = [m.value for m in metrics if m is not None and m.value is not None]
            if len(values) == len(parts):
                draws.append((facts.seed(run), sum(values) / len(values)))
        points.append(draws)
    return points


def _distances(row: Row, column: Column) -> list[float]:
    values = [value for _, value in _draws(row, [column])[0]]
    if len(values) < 2:
        return []
    mean = statistics.fmean(values)
    return [100 * (v - mean) if column.is_percent else 100 * (v / mean - 1) for v in values]


def _plot(axes: Axes, rows: list[Row], column: Column) -> None:
    for y, row in enumerate(rows):
        distances = _distances(row, column)
        if not distances:
            continue
        spread, look = statistics.stdev(distances), style.look(row.method)
        axes.plot([-spread, spread], [y, y], color=look["color"], linewidth=5, alpha=0.25)
        axes.plot(distances, [y] * len(distances), **look | {"linestyle": "none"}, markersize=4.5)
    axes.axvline(0, color=style.QUIET, linewidth=1.0, zorder=1.5)


def _data_row(row: Row, column: Column) -> tuple[str, ...]:
    draws = _draws(row, [column])[0]
    scale, decimals = metric_scale(column)
    values = [scale * value for _, value in draws]
    return (
        row.heading,
        column.label,
        str(len(draws)),
        estimate_cell(column, column.estimate(row)).text,
        formatting.number(statistics.stdev(values), decimals + 1),
        ", ".join(
            f"{formatting.number(v, decimals)} ({seed})" for v, (seed, _) in zip(values, draws, strict=True)
        ),
    )


def _alt(rows: list[Row], names: list[str], column: Column) -> str:
    spreads = [
        f"{name} {statistics.stdev(d):.2g}"
        for row, name in zip(rows, names, strict=True)
        if (d := _distances(row, column)) and all(map(math.isfinite, d))
    ]
    unit = "points" if column.is_percent else "percent"
    return f"Standard deviation over draws on {column.label}, {unit}: {', '.join(spreads)}."
