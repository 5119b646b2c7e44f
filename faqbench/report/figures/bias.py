"""Quality against bias distance: what a calibration set far from the reference costs each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from faqbench import formatting
from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.analysis import Analysis
from faqbench.report.columns import Column, Row, in_words, metric_scale, metric_unit
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import estimates, style
from faqbench.report.figures.drawing import Drawing, how_many
from faqbench.report.panels import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BITS = 3
_DRAWS_APART = 0.05  # of Jensen-Shannon divergence; draws of one scenario lie within 0.02
_MOST_DOTS = 900  # beyond, the dots of a map hide each other, and weigh more than the rest of the page
# Scenarios nearer to each other than this part of the axis would be named on top of each other.
_CLOSE_FRAC = 0.08
_KINDS = (
    ("tokens", "token distribution\nJensen-Shannon divergence"),
    ("activations", "activations\nmean shift over roles"),
)
_ROLES = ("qkv", "o", "gate_up", "down")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run: its row, its scenario, its two distances, its value."""

    row: Row
    scenario: str
    seed: str
    tokens: float
    activations: float
    shifts: Mapping[str, float]
    value: float

    def by(self, kind: str) -> float:
        """Return one of the distances; NaN when it was not measured."""
        return self.tokens if kind == "tokens" else self.activations


def draw_bias(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw a dot per run, by the distance of its tokens and by the shift of its activations."""
    panel = analysis.panel
    column = next(iter(panel.columns), None)
    points = [] if column is None else _points(panel, column)
    if column is None or not _have_biases(points):
        return None
    there = [w for _, w in sorted({(p.row.bits, p.row.widths) for p in points if p.row.bits})]
    widths = there[:_MOST_BITS]
    kinds = [(by, words) for by, words in _KINDS if any(math.isfinite(p.by(by)) for p in points)]
    dots = len(points) <= _MOST_DOTS
    figure, all_axes = style.new_figure(
        style.WIDTH, 2.7 * len(widths), len(widths), len(kinds), sharex="col"
    )
    for i, axes in enumerate(all_axes):
        width, (by, words) = widths[i // len(kinds)], kinds[i % len(kinds)]
        of_width = [p for p in points if p.row.widths == width]
        _plot(axes, panel, column, of_width, by, width, dots=dots)
        if i % len(kinds):
            axes.set_ylim(all_axes[i - 1].get_ylim())
            axes.set_yticklabels([])
        else:
            axes.set_ylabel(f"{style.label(column.label)}\n{metric_unit(column)}, {in_words(width)}")
        if i < len(kinds):
            _name_scenarios(axes, points, by)
        if i >= len(all_axes) - len(kinds):
            axes.set_xlabel(words)
    style.add_legend(figure, all_axes)
    return Drawing(
        figure=figure,
        caption=("Every dot is one run, every" if dots else "Every")
        + " line joins a method's scenario means; the further right, the less the calibration set "
        "resembles the reference. The flatter a line, the less the method minds. Horizontal: methods "
        "that read no calibration data, and full precision, dashed."
        + how_many(len(widths), len(there), "bit-widths"),
        alt=_alt(points, column),
        header=(
            "method",
            "bits",
            "scenario",
            "seed",
            "token divergence",
            *(f"shift {r}" for r in _ROLES),
            metric_unit(column),
        ),
        rows=tuple(_data_row(p, column) for p in points),
    )


def _have_biases(points: Sequence[Point]) -> bool:
    """Say whether calibration sets differ by more than draws of one scenario do."""
    tokens = [p.tokens for p in points]
    return (
        len({p.scenario for p in points}) > 1
        or max(tokens, default=0.0) - min(tokens, default=0.0) > _DRAWS_APART
    )


def _points(panel: Panel, column: Column) -> list[Point]:
    """Return every calibrated run of a panel that has a distance and a drawable value."""
    points = []
    for row in panel.rows:
        for run in row.runs if row.is_calibrated else ():
            distance, metric = bias_distance(run), column.metric_of(run)
            if distance is None or metric is None or metric.value is None:
                continue
            if not metric.value < estimates.MOST_DRAWN:
                continue
            shifts = {r: float(s) for r, s in (distance.get("activation_shift") or {}).items()}
            points.append(
                Point(
                    row=row,
                    scenario=facts.config_value(run.config, "scenario") or "",
                    seed=facts.seed(run),
                    tokens=float(distance["token_js"]),
                    activations=sum(shifts.values()) / len(shifts) if shifts else math.nan,
                    shifts=shifts,
                    value=metric.value,
                )
            )
    return points


def bias_distance(run: RunRecord) -> Mapping[str, Any] | None:
    """Return a run's measured distance from the reference, or None for a record without one."""
    calibration = run.extra.get("calibration")
    distance = calibration.get("bias_distance") if isinstance(calibration, Mapping) else None
    return distance if isinstance(distance, Mapping) and distance.get("token_js") is not None else None


def _plot(
    axes: Axes, panel: Panel, column: Column, points: list[Point], by: str, width: str, *, dots: bool
) -> None:
    """Draw one bit-width over one distance: runs as dots, their means by scenario as lines."""
    scale, _ = metric_scale(column)
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(_series(point.row), []).append(point)
    used: dict[str, int] = {}
    for name, shown in series.items():
        method = shown[0].row.method
        used[method] = used.get(method, -1) + 1
        look = style.look(method, used[method])
        if dots:
            axes.plot(
                [p.by(by) for p in shown],
                [p.value * scale for p in shown],
                **look | {"linestyle": "none"},
                markersize=3.5,
                alpha=0.6,
            )
        means = sorted(_means([p for p in shown if math.isfinite(p.by(by))], by))
        axes.plot(
            [x for x, _ in means],
            [y * scale for _, y in means],
            **look | {"marker": ""},
            label=style.label(name),
        )
    values = [p.value * scale for p in points]
    if not column.is_percent and estimates.spans_decades(values):
        axes.set_yscale("log")
        style.plain_log_ticks(axes, "y")
    _draw_uncalibrated(axes, panel, column, width, values)
    axes.margins(x=0.08)


def _draw_uncalibrated(axes: Axes, panel: Panel, column: Column, width: str, values: list[float]) -> None:
    """Draw who reads no calibration data as a line across, or name it where it is far away."""
    scale, decimals = metric_scale(column)
    reach = max(values) - min(values)
    for row in panel.rows:
        estimate = column.estimate(row)
        if estimate is None or row.is_calibrated or row.widths not in (width, ""):
            continue
        value, name = estimate.value * scale, row.short_name
        if min(values) - reach <= value <= max(values) + reach:
            dashes = (0, (4, 3)) if row.is_baseline else ":"
            axes.axhline(value, color=style.color(row.method), linestyle=dashes, linewidth=1.1, label=name)
            continue
        above = value > max(values)
        axes.text(
            0.98,
            0.98 if above else 0.02,
            f"{style.label(name)} {value:,.{decimals}f} {'▴' if above else '▾'}",
            transform=axes.transAxes,
            ha="right",
            va="top" if above else "bottom",
            fontsize=8,
            color=style.color(row.method),
        )


def _series(row: Row) -> str:
    """Return a method's name without the keys that make the scenario."""
    return row.short_name


def _means(points: list[Point], by: str) -> list[tuple[float, float]]:
    scenarios: dict[str, list[Point]] = {}
    for point in points:
        scenarios.setdefault(point.scenario, []).append(point)
    return [
        (sum(p.by(by) for p in draws) / len(draws), sum(p.value for p in draws) / len(draws))
        for draws in scenarios.values()
    ]


def _name_scenarios(axes: Axes, points: list[Point], by: str) -> None:
    """Name the scenarios above the axes where their runs lie; close ones share a name."""
    places: dict[str, list[float]] = {}
    for point in points:
        if math.isfinite(point.by(by)):
            places.setdefault(point.scenario, []).append(point.by(by))
    means = sorted((sum(xs) / len(xs), name) for name, xs in places.items())
    close = _CLOSE_FRAC * (means[-1][0] - means[0][0]) if means else 0.0
    ticks: list[list[tuple[float, str]]] = []
    for place, name in means:
        if ticks and place - ticks[-1][-1][0] < close:
            ticks[-1].append((place, name))
        else:
            ticks.append([(place, name)])
    top = axes.secondary_xaxis("top")
    top.set_xticks(
        [sum(place for place, _ in tick) / len(tick) for tick in ticks],
        ["\n".join(style.label(name, 18) for _, name in tick) for tick in ticks],
        rotation=40,
        ha="left",
        rotation_mode="anchor",
        fontsize=7.5,
    )
    top.spines["top"].set_visible(False)


def _data_row(p: Point, column: Column) -> tuple[str, ...]:
    scale, decimals = metric_scale(column)
    shifts = (formatting.number(p.shifts.get(role), 3) for role in _ROLES)
    value = formatting.number(p.value * scale, decimals)
    return (
        p.row.short_name,
        p.row.widths,
        p.scenario,
        p.seed,
        formatting.number(p.tokens, 3),
        *shifts,
        value,
    )


def _alt(points: list[Point], column: Column) -> str:
    words = []
    of_name: dict[str, list[Point]] = {}
    for point in points:
        of_name.setdefault(f"{_series(point.row)} at {point.row.widths_in_words}", []).append(point)
    for name, named in of_name.items():
        near, far = min(named, key=lambda p: p.tokens), max(named, key=lambda p: p.tokens)
        scale, decimals = metric_scale(column)
        words.append(f"{name} from {near.value * scale:,.{decimals}f} to {far.value * scale:,.{decimals}f}")
    return f"From the nearest to the farthest calibration set: {'; '.join(words)}."
