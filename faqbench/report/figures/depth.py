"""Error growth over depth: each block's own error, and what has added up until there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from faqbench.report.analysis import Analysis
from faqbench.report.evidence import ADDED_UP, ALONE, Curves, EvidenceStore, block_curves
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing
from faqbench.report.figures.facets import facets, how_many, representatives

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Error growth over depth"
_MOST_LINES = 8
_KINDS = ((ALONE, "of each block alone"), (ADDED_UP, "added up until there"))


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: its name, the method whose colour it has, its errors, and whether it is drawn."""

    name: str
    method: str
    curves: Curves
    is_drawn: bool = True


def draw(analysis: Analysis, store: EvidenceStore) -> Drawing | None:
    """Draw one line per method at the fewest bits of the first setting, means over its draws."""
    facet = next(iter(facets(analysis.panel)), None)
    if facet is None:
        return None
    found = [(row, block_curves(row.runs, store)) for row in facet.at(facet.fewest_bits)]
    there = [(row, curves) for row, curves in found if curves]
    kept = representatives([row for row, _ in there], _MOST_LINES)
    lines = [
        Line(name=row.short_name, method=row.method, curves=curves, is_drawn=row in kept)
        for row, curves in there
    ]
    where = ", ".join(w for w in (f"{facet.fewest_bits} bits", facet.title) if w)
    return draw_curves(lines, f"At {where}, means over calibration draws")


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
        (str(b), *(f"{column[b]:.4g}" if b in column else "—" for column in columns))
        for b in blocks
    )


def _alt(lines: Sequence[Line], kind: str) -> str:
    words = []
    for line in lines:
        values = list(line.curves.get(kind, {}).values())
        if values:
            words.append(f"{line.name} {values[0]:.2g} first, {values[-1]:.2g} last")
    return f"Relative error by decoder block: {'; '.join(words)}."
