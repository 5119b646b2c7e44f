"""Values by method and bits: perplexities (never mixed), accuracies, and fidelity to full precision.

There is one set of axes per column and setting. With one bit-width the rows are methods and full precision
is a vertical line; a line through single points would suggest a course that nobody measured. With several,
bits are on the x axis and each method is a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from faqbench import formatting
from faqbench.report.analysis import Analysis
from faqbench.report.columns import Column, Estimate, Row, estimate_cell, metric_scale, metric_unit
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing, Facet, facets, how_many
from faqbench.report.panels import Panel, full_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADER = ("method", "bits", "measured on", "value", "± standard error")
_Z = 1.96
MOST_DRAWN = 1e30  # a perplexity beyond it is one of a broken model, which no axis shows beside others
_MOST_AXES = 8
_MOST_ROWS = 40
_MOST_LINES = 10


def draw_perplexity(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one set of axes per protocol and setting."""
    drawing = draw_estimates(analysis.panel, analysis.panel.of_kind("perplexity"))
    return drawing and replace(drawing, caption=f"Lower is better. {drawing.caption}")


def draw_accuracy(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one set of axes per task; of several settings, the mean over tasks alone."""
    panel = analysis.panel
    means = panel.of_kind("mean_acc")
    columns = means if means and len(facets(panel)) > 1 else panel.of_kind("acc", "mean_acc")
    drawing = draw_estimates(panel, columns)
    return drawing and replace(drawing, caption=f"Higher is better. {drawing.caption}")


def draw_fidelity(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one set of axes per protocol and measure; of several settings, the divergence alone."""
    panel = analysis.panel
    several = len(facets(panel)) > 1
    columns = [c for c in panel.fidelity if c.kind == "kl" or not several]
    drawing = draw_estimates(panel, columns)
    caption = (
        "On the same tokens as full precision: KL is the mean divergence of the next token's "
        "distribution, lower is better; top-1 is how often the likeliest token is the same, "
        "higher is better. "
    )
    return drawing and replace(drawing, caption=caption + drawing.caption)


def draw_estimates(panel: Panel, columns: Sequence[Column]) -> Drawing | None:
    """Draw every column in every setting; None when no quantized row has a value of any."""
    columns = [c for c in columns if measured(panel.rows, c)]
    settings = facets(panel)
    cells = [(c, f) for c in columns for f in settings if measured(f.rows, c)]
    if not cells:
        return None
    shown = cells[:_MOST_AXES]
    lines = len({row.bits for row in panel.rows if row.bits}) > 1
    # A single measure deserves the whole width, and as dots a number at each point.
    n_across = 1 if len(shown) == 1 or (columns[0].kind == "perplexity" and not lines) else 2
    figure, all_axes = _new_figure(shown, n_across, lines=lines)
    n_left_out = 0
    for i, (axes, (column, facet)) in enumerate(zip(all_axes, shown, strict=False)):
        plot = _plot_lines if lines else _plot_dots
        n_left_out += plot(axes, panel, facet, column, label_values=n_across == 1)
        axes.set_title(style.label(facet.title or column.label, 66 // n_across))
        name = f"{column.label}\n{metric_unit(column)}" if facet.title else metric_unit(column)
        if lines and i % n_across == 0:
            axes.set_ylabel(name)
        elif not lines and i >= len(shown) - n_across:
            axes.set_xlabel(name.replace("\n", ", "))
        if not lines and i % n_across and _names(axes) == _names(all_axes[i - 1]):
            axes.set_yticklabels([])
    style.add_legend(figure, all_axes[: len(shown)])
    return Drawing(
        figure=figure,
        caption="Bars are 95 % intervals of each value by itself; differences are paired and far "
        "more precise, see below. The dashed line is full precision."
        + (" The scale is logarithmic." if any(_is_log(panel, c) for c, _ in shown) else "")
        + how_many(len(shown), len(cells), "sets of axes")
        + (f" {n_left_out} points are left to the table." if n_left_out else ""),
        alt="; ".join(_extremes(panel, column) for column in columns) + ".",
        header=HEADER,
        rows=_data_rows(panel, columns),
    )


def _new_figure(
    shown: Sequence[tuple[Column, Facet]], n_across: int, *, lines: bool
) -> tuple[Figure, list[Axes]]:
    """Return a figure with room for all rows, unused axes hidden."""
    grid = [shown[i : i + n_across] for i in range(0, len(shown), n_across)]
    heights = [2.9 if n_across == 1 else 2.3] * len(grid)
    if not lines:
        most = [max(len(measured(f.rows, c)) for c, f in row) for row in grid]
        heights = [0.85 + 0.3 * min(_MOST_ROWS, n) for n in most]
    figure, all_axes = style.new_figure(
        style.WIDTH, sum(heights), len(grid), n_across, height_ratios=heights
    )
    for axes in all_axes[len(shown) :]:
        axes.set_visible(False)
    return figure, all_axes


def measured(rows: Sequence[Row], column: Column) -> list[tuple[Row, Estimate]]:
    """Return the quantized rows that have a number in a column which an axis can hold."""
    estimates = [(row, column.estimate(row)) for row in rows if not row.is_baseline]
    return [(row, e) for row, e in estimates if e is not None and e.value < MOST_DRAWN]


def baseline_value(panel: Panel, rows: Iterable[Row], column: Column) -> float | None:
    """Return the number of full precision, in the unit of the plot; None where rows have others each."""
    values = {e.value for full in full_rows(panel, rows) if (e := column.estimate(full)) is not None}
    return values.pop() * metric_scale(column)[0] if len(values) == 1 else None


def half_width(estimate: Estimate, scale: float) -> float:
    """Return half of a value's 95 % interval; 0 when its error is unknown."""
    return 0.0 if math.isnan(estimate.stderr) else _Z * estimate.stderr * scale


def spans_decades(values: Sequence[float]) -> bool:
    """Whether values differ by more than a factor of three."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 3


def _is_log(panel: Panel, column: Column) -> bool:
    values = [e.value for _, e in measured(panel.rows, column)]
    base = baseline_value(panel, panel.rows, column)
    values += [] if base is None else [base]
    return not column.is_percent and spans_decades(values)


def _names(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def _data_rows(panel: Panel, columns: Sequence[Column]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for column in columns:
        for row in panel.rows:
            estimate = column.estimate(row)
            if estimate is not None:
                cell = estimate_cell(column, estimate)
                bits = row.widths or formatting.NONE
                error = cell.error or formatting.NONE
                rows.append((row.name, bits, column.label, cell.text, error))
    return tuple(rows)


def _extremes(panel: Panel, column: Column) -> str:
    rows = sorted(measured(panel.rows, column), key=lambda pair: pair[1].value)
    ends = [f"{estimate_cell(column, e).text} ({row.heading})" for row, e in (rows[0], rows[-1])]
    name = metric_unit(column).partition(",")[0]
    return f"{name} on {column.task} of {panel.model} from {ends[0]} to {ends[1]}"


def _plot_dots(axes: Axes, panel: Panel, facet: Facet, column: Column, *, label_values: bool) -> int:
    """Draw one row per method with its 95 % interval; return how many were too many."""
    there = measured(facet.rows, column)
    rows = there[:_MOST_ROWS]
    scale, decimals = metric_scale(column)
    log = _is_log(panel, column)
    if log:
        axes.set_xscale("log")
    for y, (row, estimate) in enumerate(rows):
        value, half = estimate.value * scale, half_width(estimate, scale)
        axes.errorbar(
            value,
            y,
            xerr=[[min(half, value * 0.95) if log else half], [half]],
            **style.look(row.method) | {"linestyle": "none"},
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
    _draw_baseline(axes, panel, facet, column, vertical=True)
    style.name_rows(axes, [style.label(row.short_name, 30) for row, _ in rows])
    if log:
        style.plain_log_ticks(axes, "x")
    return len(there) - len(rows)


def _plot_lines(axes: Axes, panel: Panel, facet: Facet, column: Column, *, label_values: bool) -> int:
    """Draw one line per method over bits; return how many points were too many."""
    scale, _ = metric_scale(column)
    if _is_log(panel, column):
        axes.set_yscale("log")
    there: dict[str, list[tuple[Row, Estimate]]] = {}
    for row, estimate in measured(facet.rows, column):
        there.setdefault(row.short_name, []).append((row, estimate))
    lines = dict(list(there.items())[:_MOST_LINES])
    used: dict[str, int] = {}
    for i, (name, points) in enumerate(lines.items()):
        points.sort(key=lambda point: point[0].bits or 0)
        method = points[0][0].method
        used[method] = used.get(method, -1) + 1
        shift = 0.035 * (i - (len(lines) - 1) / 2)
        axes.errorbar(
            [(row.bits or 0) + shift for row, _ in points],
            [e.value * scale for _, e in points],
            yerr=[half_width(e, scale) for _, e in points],
            **style.look(method, used[method]),
            elinewidth=1.2,
            label=style.label(name),
        )
    _draw_baseline(axes, panel, facet, column, vertical=False)
    axes.set_xticks(sorted({row.bits for row, _ in measured(facet.rows, column) if row.bits}))
    axes.set_xlabel("bits")
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.12)
    if axes.get_yscale() == "log":
        style.plain_log_ticks(axes, "y")
    return sum(len(points) for name, points in there.items() if name not in lines)


def _draw_baseline(axes: Axes, panel: Panel, facet: Facet, column: Column, *, vertical: bool) -> None:
    value = baseline_value(panel, facet.rows, column)
    if value is None or not math.isfinite(value):
        return
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color=style.QUIET, linestyle=(0, (4, 3)), linewidth=1.1, zorder=1.5, label="full precision")
