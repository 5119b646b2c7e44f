"""Where a method errs: the error of every linear as a heat map, and the difference of two methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from faqbench.report.analysis import Analysis
from faqbench.report.columns import Row
from faqbench.report.evidence import Array, EvidenceStore, LinearErrors, linear_errors
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing
from faqbench.report.figures.facets import facets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

TITLE = "Error of every linear"
_OUTER = 2  # percent at each end that share a colour, so that one outlier does not take them all


def draw(analysis: Analysis, store: EvidenceStore) -> Drawing | None:
    """Draw the baseline's errors, its best rival's, and the ratio of the two."""
    facet = next(iter(facets(analysis.panel)), None)
    if facet is None:
        return None
    rows = [(row, linear_errors(row.runs, store)) for row in facet.at(facet.fewest_bits)]
    known = [(row, errors) for row, errors in rows if errors]
    if not known:
        return None
    first = next((pair for pair in known if pair[0].method == analysis.baseline), known[0])
    rivals = [p for p in known if p[0] is not first[0] and p[1].keys() == first[1].keys()]
    rivals.sort(key=lambda pair: _quality(analysis, pair[0]))
    where = ", ".join(w for w in (f"{facet.fewest_bits} bits", facet.title) if w)
    chosen = [(row.short_name, errors) for row, errors in (first, *rivals[:1])]
    return draw_maps(chosen, f"at {where}, mean over calibration draws,")


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
        alt=_alt(chosen),
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


def _show(
    axes: Axes, grid: Array, linears: list[str], colors: str, low: float, high: float
) -> AxesImage:
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


def _alt(chosen: Sequence[tuple[str, LinearErrors]]) -> str:
    words = []
    for name, errors in chosen:
        (linear, block), worst = max(errors.items(), key=lambda pair: pair[1])
        words.append(f"{name} errs most in {linear} of block {block}, {worst:.3g}")
    return "; ".join(words) + "."
