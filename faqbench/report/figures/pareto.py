"""Quality against size: numbers over bits per weight, and the front, by setting or with the best of all.

The cost by method stands beside it: the seconds of every stage, stacked, and the peak memory beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from faqbench import formatting
from faqbench.report.analysis import Analysis
from faqbench.report.columns import Column, Estimate, Row, estimate_cell, metric_scale, metric_unit
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import estimates, style
from faqbench.report.figures.drawing import Drawing, facets, how_many, row_label
from faqbench.report.glance import telling_column
from faqbench.report.panels import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_MOST_AXES = 6
Points = list[tuple[float, float, Row, Estimate]]


def draw_pareto(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one set of axes per setting and measure: the first perplexity, the mean accuracy."""
    panel = analysis.panel
    columns = panel.of_kind("perplexity")[:1] + (panel.of_kind("mean_acc", "acc")[-1:])
    drawn = [(c, f, _points(f.rows, c)) for c in columns for f in facets(panel)]
    cells = [(c, f, points) for c, f, points in drawn if len({x for x, *_ in points}) > 1]
    if not cells:
        return None
    shown = cells[:_MOST_AXES]
    n_across = min(2, len(shown))
    n_down = -(-len(shown) // n_across)
    figure, all_axes = style.new_figure(style.WIDTH, 2.6 * n_down, n_down, n_across)
    for axes in all_axes[len(shown) :]:
        axes.set_visible(False)
    rows = []
    for axes, (column, facet, points) in zip(all_axes, shown, strict=False):
        plot_front(axes, panel, column, points)
        axes.set_title(style.label(facet.title or column.label, 66 // n_across))
        name = f"{column.label}\n{metric_unit(column)}" if facet.title else metric_unit(column)
        axes.set_ylabel(name)
        axes.set_xlabel("bits per weight")
    for column, facet, points in cells:
        on_front = {id(row) for *_, row, _ in front_of(points, column)}
        rows += [
            (
                row.name,
                facet.title or formatting.NONE,
                formatting.number(x, 3),
                column.label,
                estimate_cell(column, e).text,
                "yes" if id(row) in on_front else "",
            )
            for x, _, row, e in points
        ]
    style.add_legend(figure, all_axes[: len(shown)])
    return Drawing(
        figure=figure,
        caption="Bits per weight count codes, scales and zero points of the quantized linears; a recipe "
        "that skips linears is left out. The grey steps are the front, whose methods are named: nothing "
        "smaller is better by value, significance aside. The dashed line is full precision."
        + how_many(len(shown), len(cells), "sets of axes"),
        alt="On the front: "
        + "; ".join(
            f"{row.name} at {formatting.number(x, 2)} bits per weight"
            for x, _, row, _ in front_of(cells[0][2], cells[0][0])
        )
        + ".",
        header=("method", "setting", "bits per weight", "measured on", "value", "on the front"),
        rows=tuple(rows),
    )


def _points(rows: Sequence[Row], column: Column) -> Points:
    """Return the rows with a size; linears that a recipe skips have none in it, so it looks too small."""
    scale, _ = metric_scale(column)
    return [
        (row.runs[0].bits_per_weight, e.value * scale, row, e)
        for row, e in estimates.measured(rows, column)
        if row.runs[0].bits_per_weight is not None and row.keys.get("quant.skip", "[]") == "[]"
    ]


def front_of(points: Points, column: Column) -> Points:
    """Return the points that no smaller one equals or beats, from small to large."""
    sign = -1 if column.higher_is_better else 1
    front: Points = []
    for point in sorted(points, key=lambda p: (p[0], sign * p[1])):
        if not front or sign * point[1] < sign * front[-1][1]:
            front.append(point)
    return front


def plot_front(axes: Axes, panel: Panel, column: Column, points: Points) -> None:
    """Draw the points, their front with its methods' names, and full precision as a dashed line."""
    base = estimates.baseline_value(panel, [row for *_, row, _ in points], column)
    values = [y for _, y, *_ in points] + ([] if base is None else [base])
    if not column.is_percent and estimates.spans_decades(values):
        axes.set_yscale("log")
    front = front_of(points, column)
    xs = [x for x, *_ in front] + [max(x for x, *_ in points)]
    ys = [y for _, y, *_ in front] + [front[-1][1]]
    axes.step(xs, ys, where="post", color=style.QUIET, linewidth=1.0, zorder=1.2, marker="")
    for x, y, row, _ in front:
        axes.annotate(
            style.label(row.short_name, 22),
            (x, y),
            xytext=(5, 5 if column.higher_is_better else -5),
            textcoords="offset points",
            va="bottom" if column.higher_is_better else "top",
            fontsize=8,
            color=style.INK,
        )
    methods = dict.fromkeys(row.method for _, _, row, _ in points)
    for method in methods:
        of_method = [(x, y) for x, y, row, _ in points if row.method == method]
        axes.plot(
            [x for x, _ in of_method],
            [y for _, y in of_method],
            **style.look(method) | {"linestyle": "none"},
            label=style.label(own_name(points, method)),
        )
    if base is not None:
        axes.axhline(base, color=style.QUIET, linestyle=(0, (4, 3)), linewidth=1.1, label="full precision")
    axes.margins(x=0.2, y=0.12)
    if axes.get_yscale() == "log":
        style.plain_log_ticks(axes, "y")


def own_name(points: Points, method: str) -> str:
    """Return a method's name in the legend, where its variants share one mark."""
    names = [row.short_name for _, _, row, _ in points if row.method == method]
    return names[0] if len(set(names)) == 1 else names[0].partition(" ")[0]


def draw_what_to_use(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw the deciding measure, and the divergence from full precision where it was measured."""
    panel, column = analysis.panel, telling_column(analysis)
    columns = [c for c in panel.fidelity if column and c.kind == "kl" and c.task == column.task]
    drawn = [(c, _best_points(panel, c)) for c in ([column] if column else []) + columns[:1]]
    drawn = [(c, points) for c, points in drawn if len({x for x, *_ in points}) > 1]
    if not drawn:
        return None
    figure, all_axes = style.new_figure(style.WIDTH, 3.0, 1, len(drawn))
    for axes, (c, points) in zip(all_axes, drawn, strict=True):
        plot_front(axes, panel, c, points)
        axes.set_title(style.label(c.task, 30))
        axes.set_ylabel(metric_unit(c))
        axes.set_xlabel("bits per weight")
    style.add_legend(figure, all_axes)
    return Drawing(
        figure=figure,
        caption="Each method at each bit-width in the setting that suits it best, by its bits per weight, "
        "scales and zero points included; a recipe that skips linears is left out. The grey steps are the "
        "front, whose methods are named: nothing smaller is better by value, significance aside. The "
        "dashed line is full precision.",
        alt="On the front: "
        + "; ".join(
            f"{row.name} at {formatting.number(x, 2)} bits per weight"
            for x, _, row, _ in front_of(drawn[0][1], drawn[0][0])
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
            for c, points in drawn
            for x, _, row, e in points
        ),
    )


def _best_points(panel: Panel, column: Column) -> Points:
    """Return per method, variant and width the point of the setting with the best value."""
    sign, points = -1 if column.higher_is_better else 1, _points(panel.rows, column)
    best: dict[tuple[str, str], Row] = {}
    for _, _, row, _ in sorted(points, key=lambda p: sign * p[1]):
        best.setdefault((row.short_name, row.widths), row)
    return [point for point in points if best[point[2].short_name, point[2].widths] is point[2]]


_MOST_ROWS = 24


def draw_cost(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one bar per row, its stages stacked; means over calibration draws."""
    there = analysis.panel.rows
    rows = there[:_MOST_ROWS]
    runs = sorted((run for row in there for run in row.runs), key=lambda run: -len(run.stages))
    stages = list(dict.fromkeys(stage for run in runs for stage in run.stages))
    if sum(_seconds(row, stage) for row in rows for stage in stages) <= 0:
        return None
    figure, (time, memory) = style.new_figure(
        style.WIDTH, 1.1 + 0.27 * len(rows), 1, 2, width_ratios=(2.2, 1)
    )
    left = [0.0] * len(rows)
    for i, stage in enumerate(stages):
        widths = [_seconds(row, stage) for row in rows]
        paint = style.STAGE_COLORS[i % len(style.STAGE_COLORS)]
        time.barh(range(len(rows)), widths, left=left, height=0.55, color=paint, label=style.label(stage))
        left = [a + b for a, b in zip(left, widths, strict=True)]
    style.name_rows(time, [row_label(row) for row in rows])
    time.set_xlabel("seconds")
    for y, row in enumerate(rows):
        look = style.look(row.method) | {"linestyle": "none"}
        memory.plot([_memory(row) / 1e9], [y], **look)
    style.name_rows(memory, [""] * len(rows))
    memory.set_xlim(0, 1.12e-9 * max(1, *(_memory(row) for row in rows)))
    memory.set_xlabel("peak memory, GB")
    style.add_legend(figure, [time])
    return Drawing(
        figure=figure,
        caption="Seconds of each stage, mean over calibration draws, and the largest peak memory. A "
        "stage found in the cache costs this run only its check: the first run that needed it paid "
        "for it." + how_many(len(rows), len(there), "rows"),
        alt="Seconds by method: "
        + ", ".join(f"{r.heading} {formatting.seconds(t)}" for r, t in zip(rows, left, strict=True))
        + ".",
        header=("method", *stages, "peak memory"),
        rows=tuple(
            (row.heading, *(_stage_text(row, stage) for stage in stages), formatting.n_bytes(_memory(row)))
            for row in there
        ),
    )


def _seconds(row: Row, stage: str) -> float:
    seconds = [run.stages[stage].seconds for run in row.runs if stage in run.stages]
    return sum(seconds) / len(row.runs)


def _memory(row: Row) -> int:
    return max(run.peak_memory_bytes for run in row.runs)


def _stage_text(row: Row, stage: str) -> str:
    timings = [run.stages[stage] for run in row.runs if stage in run.stages]
    if not timings:
        return formatting.NONE
    cached = " (cached)" if all(timing.cached for timing in timings) else ""
    return formatting.seconds(_seconds(row, stage)) + cached
