"""Error growth over depth: each block's own error, and what has added up until there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from faqbench.records import RunRecord
from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing
from faqbench.report.figures.facets import facets, how_many, representatives
from faqbench.report.panels import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Error growth over depth"
_MOST_LINES = 8
_KINDS = (("local_error", "of each block alone"), ("relative_error", "added up until there"))
_Curves = dict[str, dict[int, float]]


def draw(analysis: Analysis, store: EvidenceStore) -> Drawing | None:
    """Draw one line per method at the fewest bits of the first setting, means over its draws."""
    facet = next(iter(facets(analysis.panel)), None)
    if facet is None:
        return None
    found = [(row, _curves(row, store)) for row in facet.at(facet.fewest_bits)]
    there = [(row, curves) for row, curves in found if curves]
    kept = representatives([row for row, _ in there], _MOST_LINES)
    lines = [(row, curves) for row, curves in there if row in kept]
    kinds = [(k, words) for k, words in _KINDS if any(k in curves for _, curves in lines)]
    if not kinds:
        return None
    figure, all_axes = style.new_figure(style.WIDTH, 2.9, 1, len(kinds), sharey=True)
    for axes, (kind, words) in zip(all_axes, kinds, strict=True):
        _plot(axes, lines, kind)
        axes.set_title(words)
    all_axes[0].set_ylabel("relative squared error")
    style.add_legend(figure, all_axes)
    where = ", ".join(w for w in (f"{facet.fewest_bits} bits", facet.title) if w)
    return Drawing(
        figure=figure,
        caption=f"At {where}, means over calibration draws, lower is better. Alone: a quantized "
        "block's output on full precision inputs. Added up: on the inputs that the quantized "
        "blocks before it give. Without these traces, the mean over the block's linears. The scale "
        "is logarithmic." + how_many(len(lines), len(there), "methods"),
        alt=_alt(lines, kinds[-1][0]),
        header=(
            "block",
            *(
                f"{row.short_name}, {'alone' if k == 'local_error' else 'added up'}"
                for row, _ in there
                for k, _ in kinds
            ),
        ),
        rows=_data_rows(there, [k for k, _ in kinds]),
    )


def _curves(row: Row, store: EvidenceStore) -> _Curves:
    """Return kind of error -> block -> mean over the row's draws."""
    traced = [blocks for run in row.runs if (blocks := _traces(run))]
    if traced:
        return {
            kind: _mean([{b["block"]: b[kind] for b in t} for t in traced]) for kind, _ in _KINDS
        }
    tables = []
    for run in row.runs:
        layers = store.of(run.run_id).layers
        if layers is not None and len(layers) and {"block", "relative_error"} <= set(layers):
            series = layers.groupby("block")["relative_error"].mean().dropna()
            tables.append({int(b): float(x) for b, x in series.items() if x > 0})
    return {"local_error": _mean(tables)} if any(tables) else {}


def _traces(run: RunRecord) -> list[Mapping[str, float]]:
    """Return a run's traced blocks; records are read leniently."""
    wanted = {"block", *(kind for kind, _ in _KINDS)}
    blocks = run.extra.get("blocks")
    found = blocks if isinstance(blocks, list) else []
    return [
        b for b in found if isinstance(b, Mapping) and all(b.get(k) is not None for k in wanted)
    ]


def _mean(curves: list[dict[int, float]]) -> dict[int, float]:
    blocks = sorted({int(b) for curve in curves for b in curve})
    return {b: sum(c[b] for c in curves if b in c) / sum(b in c for c in curves) for b in blocks}


def _plot(axes: Axes, lines: list[tuple[Row, _Curves]], kind: str) -> None:
    used: dict[str, int] = {}
    for row, curves in lines:
        used[row.method] = used.get(row.method, -1) + 1
        points = {b: e for b, e in curves.get(kind, {}).items() if e > 0}
        axes.plot(
            list(points),
            list(points.values()),
            **style.look(row.method, used[row.method]),
            markersize=3,
            linewidth=1.2,
            label=style.label(row.short_name),
        )
    axes.set_yscale("log")
    axes.set_xlabel("decoder block")
    style.plain_log_ticks(axes, "y")


def _data_rows(lines: list[tuple[Row, _Curves]], kinds: list[str]) -> tuple[tuple[str, ...], ...]:
    columns = [curves.get(kind, {}) for _, curves in lines for kind in kinds]
    blocks = sorted({b for column in columns for b in column})
    return tuple(
        (str(b), *(f"{column[b]:.4g}" if b in column else "—" for column in columns))
        for b in blocks
    )


def _alt(lines: list[tuple[Row, _Curves]], kind: str) -> str:
    words = []
    for row, curves in lines:
        values = list(curves.get(kind, {}).values())
        if values:
            words.append(f"{row.short_name} {values[0]:.2g} first, {values[-1]:.2g} last")
    return f"Relative error by decoder block: {'; '.join(words)}."
