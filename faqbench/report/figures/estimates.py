"""Shared by the plots of perplexity and accuracy: a dot plot of one column, or lines over bits.

With one bit-width the rows are methods and full precision is a vertical line; a line through single
points would suggest a course that nobody measured. With several, bits are on the x axis and each
method is a line.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from faqbench.report.columns import Column, Estimate
from faqbench.report.figures import style
from faqbench.report.panels import Panel, Row
from faqbench.report.tables import estimate_cell, metric_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADER = ("method", "bits", "measured on", "value", "± standard error")
_Z = 1.96


def quantized_rows(panel: Panel) -> list[Row]:
    """Return the rows with a bit-width."""
    return [row for row in panel.rows if not row.is_baseline]


def has_several_bits(panel: Panel) -> bool:
    """Whether there is a course over bits to draw."""
    return len({row.bits for row in quantized_rows(panel)}) > 1


def measured(panel: Panel, column: Column) -> list[tuple[Row, Estimate]]:
    """Return the quantized rows that have a finite number in a column."""
    found = [(row, column.estimate(row)) for row in quantized_rows(panel)]
    return [(row, e) for row, e in found if e is not None and math.isfinite(e.value)]


def baseline_value(panel: Panel, column: Column) -> float | None:
    """Return full precision's number, in the unit of the plot."""
    found = [column.estimate(row) for row in panel.rows if row.is_baseline]
    return next((e.value * metric_scale(column)[0] for e in found if e is not None), None)


def data_rows(panel: Panel, columns: list[Column]) -> tuple[tuple[str, ...], ...]:
    """Return the numbers of a plot as a table."""
    rows = []
    for column in columns:
        for row in panel.rows:
            estimate = column.estimate(row)
            if estimate is not None:
                cell = estimate_cell(column, estimate, "")
                bits = "—" if row.bits is None else str(row.bits)
                rows.append((row.name, bits, column.label, cell.text, cell.error or "—"))
    return tuple(rows)


def plot_dots(axes: Axes, panel: Panel, column: Column, *, label_values: bool) -> None:
    """Draw one row per method with its 95 % interval, and full precision as a line."""
    rows = measured(panel, column)
    scale, decimals = metric_scale(column)
    log = column.kind == "perplexity" and spans_decades(panel, column)
    if log:
        axes.set_xscale("log")
    for y, (row, estimate) in enumerate(rows):
        value, half = estimate.value * scale, _half_width(estimate, scale)
        axes.errorbar(
            value,
            y,
            xerr=[[min(half, value * 0.95) if log else half], [half]],
            fmt=style.marker(row.method),
            color=style.color(row.method),
            capsize=0,
            elinewidth=1.4,
        )
        if label_values:
            axes.annotate(
                f"{value:,.{decimals}f}",
                (value, y),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    _draw_baseline(axes, panel, column, vertical=True)
    style.name_rows(axes, [style.label(row.name, 26) for row, _ in rows])
    if log:
        style.plain_log_ticks(axes, "x")
    axes.set_title(style.label(column.label))


def plot_lines(axes: Axes, panel: Panel, column: Column) -> None:
    """Draw one line per method over bits, and full precision as a line across."""
    scale, _ = metric_scale(column)
    if column.kind == "perplexity" and spans_decades(panel, column):
        axes.set_yscale("log")
    lines: dict[str, list[tuple[Row, Estimate]]] = {}
    for row, estimate in measured(panel, column):
        lines.setdefault(row.name, []).append((row, estimate))
    used: dict[str, int] = {}
    for i, (name, points) in enumerate(lines.items()):
        points.sort(key=lambda point: point[0].bits or 0)
        method = points[0][0].method
        used[method] = used.get(method, -1) + 1
        shift = 0.035 * (i - (len(lines) - 1) / 2)
        axes.errorbar(
            [(row.bits or 0) + shift for row, _ in points],
            [e.value * scale for _, e in points],
            yerr=[_half_width(e, scale) for _, e in points],
            marker=style.marker(method),
            color=style.color(method),
            linestyle=style.LINE_STYLES[used[method] % len(style.LINE_STYLES)],
            elinewidth=1.2,
            label=style.label(name),
        )
    _draw_baseline(axes, panel, column, vertical=False)
    axes.set_xticks(sorted({row.bits for row, _ in measured(panel, column) if row.bits}))
    axes.set_xlabel("bits")
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.12)
    if axes.get_yscale() == "log":
        style.plain_log_ticks(axes, "y")
    axes.set_title(style.label(column.label))


def spans_decades(panel: Panel, column: Column) -> bool:
    """Whether the values differ by more than a factor of three."""
    values = [e.value for _, e in measured(panel, column)]
    base = baseline_value(panel, column)
    values += [] if base is None else [base]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 3


def _half_width(estimate: Estimate, scale: float) -> float:
    return 0.0 if math.isnan(estimate.stderr) else _Z * estimate.stderr * scale


def _draw_baseline(axes: Axes, panel: Panel, column: Column, *, vertical: bool) -> None:
    value = baseline_value(panel, column)
    if value is None or not math.isfinite(value):
        return
    draw = axes.axvline if vertical else axes.axhline
    draw(
        value,
        color=style.QUIET,
        linestyle=(0, (4, 3)),
        linewidth=1.1,
        zorder=1.5,
        label="full precision",
    )
