"""Where a method errs: the growth of its errors over depth, and the error of every linear as a heat map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from faqbench.report.analysis import Analysis
from faqbench.report.columns import Row
from faqbench.report.evidence import (
    ADDED_UP,
    ALONE,
    Array,
    Curves,
    EvidenceStore,
    LinearErrors,
    block_curves,
    linear_errors,
)
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing, facets, how_many, representatives

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage


_MOST_LINES = 8
_KINDS = ((ALONE, "of each block alone"), (ADDED_UP, "added up until there"))


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: its name, the method whose colour it has, its errors, and whether it is drawn."""

    name: str
    method: str
    curves: Curves
    is_drawn: bool = True


def draw_depth(analysis: Analysis, store: EvidenceStore) -> Drawing | None:
    """Draw one line per method at the fewest bits of the first setting, means over its draws."""
    facet = next(iter(facets(analysis.panel)), None)
    if facet is None:
        return None
    curves_of_rows = [(row, block_curves(row.runs, store)) for row in facet.at(facet.fewest_bits)]
    there = [(row, curves) for row, curves in curves_of_rows if curves]
    kept = representatives([row for row, _ in there], _MOST_LINES)
    lines = [
        Line(name=row.short_name, method=row.method, curves=curves, is_drawn=row in kept)
        for row, curves in there
    ]
    return draw_curves(lines, f"At {facet.where}, means over calibration draws")


def draw_curves(lines: Sequence[Line], where: str) -> Drawing | None:
    """Draw some lines, errors alone and added up beside each other; None without any.

    Args:
        lines: all of them are in the table.
        where: the beginning of the caption.
    """
    drawn = [line for line in lines if line.is_drawn]
    kinds = [(k, words) for k, words in _KINDS if any(line.curves.get(k) for line in drawn)]
    if not kinds:
        return None
    figure, all_axes = style.new_figure(style.WIDTH, 2.9, 1, len(kinds), sharey=True)
    for axes, (kind, words) in zip(all_axes, kinds, strict=True):
        _plot(axes, drawn, kind)
        axes.set_title(words)
    all_axes[0].set_ylabel("relative squared error")
    style.add_legend(figure, all_axes)
    return Drawing(
        figure=figure,
        caption=f"{where}, lower is better. Alone: a quantized block's output on full precision "
        "inputs. Added up: on the inputs that the quantized blocks before it give. Without these "
        "traces, the mean over the block's linears. The scale is logarithmic."
        + how_many(len(drawn), len(lines), "methods"),
        alt=_alt(drawn, kinds[-1][0]),
        header=(
            "block",
            *(
                f"{line.name}, {'alone' if kind == ALONE else 'added up'}"
                for line in lines
                for kind, _ in kinds
            ),
        ),
        rows=_data_rows(lines, [kind for kind, _ in kinds]),
    )


def _plot(axes: Axes, lines: Sequence[Line], kind: str) -> None:
    used: dict[str, int] = {}
    for line in lines:
        used[line.method] = used.get(line.method, -1) + 1
        points = {b: e for b, e in line.curves.get(kind, {}).items() if e > 0}
        axes.plot(
            list(points),
            list(points.values()),
            **style.look(line.method, used[line.method]),
            markersize=3,
            linewidth=1.2,
            label=style.label(line.name),
        )
    axes.set_yscale("log")
    axes.set_xlabel("decoder block")
    style.plain_log_ticks(axes, "y")


def _data_rows(lines: Sequence[Line], kinds: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    columns = [line.curves.get(kind, {}) for line in lines for kind in kinds]
    blocks = sorted({block for column in columns for block in column})
    return tuple(
        (str(b), *(f"{column[b]:.4g}" if b in column else "—" for column in columns)) for b in blocks
    )


def _alt(lines: Sequence[Line], kind: str) -> str:
    words = []
    for line in lines:
        values = list(line.curves.get(kind, {}).values())
        if values:
            words.append(f"{line.name} {values[0]:.2g} first, {values[-1]:.2g} last")
    return f"Relative error by decoder block: {'; '.join(words)}."


_OUTER = 2  # percent at each end that share a colour, so that one outlier does not take them all


def draw_linears(analysis: Analysis, store: EvidenceStore) -> Drawing | None:
    """Draw the baseline's errors, its best rival's, and the ratio of the two."""
    facet = next(iter(facets(analysis.panel)), None)
    if facet is None:
        return None
    rows = [(row, linear_errors(row.runs, store)) for row in facet.at(facet.fewest_bits)]
    measured = [(row, errors) for row, errors in rows if errors]
    if not measured:
        return None
    first = next((pair for pair in measured if pair[0].method == analysis.baseline), measured[0])
    rivals = [p for p in measured if p[0] is not first[0] and p[1].keys() == first[1].keys()]
    rivals.sort(key=lambda pair: _quality(analysis, pair[0]))
    chosen = [(row.short_name, errors) for row, errors in (first, *rivals[:1])]
    return draw_maps(chosen, f"at {facet.where}, mean over calibration draws,")


def draw_maps(chosen: Sequence[tuple[str, LinearErrors]], where: str) -> Drawing:
    """Draw one heat map per name, and of two the ratio of the second to the first.

    Args:
        chosen: one or two names with the errors of the same linears.
        where: a half sentence about what is drawn.
    """
    linears = list(dict.fromkeys(linear for linear, _ in chosen[0][1]))
    blocks = sorted({block for _, block in chosen[0][1]})
    grids = [_grid(errors, linears, blocks) for _, errors in chosen]
    n_maps = len(grids) + (len(grids) == 2)
    figure, all_axes = style.new_figure(
        style.WIDTH, (0.62 + 0.17 * len(linears)) * n_maps, n_maps, 1, sharex=True
    )
    low, high = np.nanpercentile(np.stack(grids), (_OUTER, 100 - _OUTER))
    for axes, grid, (name, _) in zip(all_axes, grids, chosen, strict=False):
        image = _show(axes, grid, linears, "cividis", low, high)
        axes.set_title(style.label(name, 60))
        _colorbar(figure, image, axes, "error", lambda v: f"{10**v:.2g}")
    if len(grids) == 2:
        ratio = (grids[1] - grids[0]) / math.log10(2)
        limit = max(0.1, float(np.nanpercentile(np.abs(ratio), 100 - _OUTER)))
        image = _show(all_axes[2], ratio, linears, "PuOr_r", -limit, limit)
        all_axes[2].set_title(style.label(f"{chosen[1][0]} over {chosen[0][0]}", 60))
        _colorbar(figure, image, all_axes[2], "ratio", lambda v: f"{2**v:.2g}x")
    all_axes[-1].set_xlabel("decoder block")
    in_ratio = (
        " In the ratio, purple is where the second is closer to full precision, orange where it is "
        "further away."
    )
    return Drawing(
        figure=figure,
        caption=f"Relative squared output error of every quantized linear {where} on logarithmic "
        "scales; grey is not measured, and the outermost 2 % share the last colours."
        + (in_ratio if len(grids) == 2 else ""),
        alt=_alt_of_maps(chosen),
        header=("block", "linear", *(name for name, _ in chosen)),
        rows=tuple(
            (str(b), linear, *(_text(errors.get((linear, b))) for _, errors in chosen))
            for b in blocks
            for linear in linears
        ),
    )


def _quality(analysis: Analysis, row: Row) -> float:
    column = next(iter(analysis.panel.columns), None)
    estimate = column.estimate(row) if column else None
    if column is None or estimate is None:
        return math.inf
    return -estimate.value if column.higher_is_better else estimate.value


def _grid(errors: LinearErrors, linears: list[str], blocks: list[int]) -> Array:
    values = [[errors.get((linear, b), math.nan) for b in blocks] for linear in linears]
    grid = np.array(values, dtype=float)
    return np.log10(np.where(grid > 0, grid, np.nan))


def _show(axes: Axes, grid: Array, linears: list[str], colors: str, low: float, high: float) -> AxesImage:
    image = axes.imshow(
        grid, aspect="auto", interpolation="none", cmap=style.colormap(colors), vmin=low, vmax=high
    )
    names = [linear.rpartition(".")[-1] for linear in linears]
    axes.set_yticks(range(len(names)), [style.label(n, 16) for n in names])
    axes.tick_params(length=0, labelcolor=style.INK, labelsize=8)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _colorbar(
    figure: Figure, image: AxesImage, axes: Axes, label: str, spell: Callable[[float], str]
) -> None:
    bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=9, ticks=style.three_ticks(image))
    bar.ax.set_yticklabels([spell(v) for v in bar.get_ticks()])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
    bar.set_label(label, fontsize=8, color=style.QUIET)


def _text(error: float | None) -> str:
    return "—" if error is None or not math.isfinite(error) else f"{error:.4g}"


def _alt_of_maps(chosen: Sequence[tuple[str, LinearErrors]]) -> str:
    words = []
    for name, errors in chosen:
        (linear, block), worst = max(errors.items(), key=lambda pair: pair[1])
        words.append(f"{name} errs most in {linear} of block {block}, {worst:.3g}")
    return "; ".join(words) + "."
