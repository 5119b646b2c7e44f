"""Error over depth: the relative output error of each block's linears, by method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import style
from faqbench.report.figures.drawing import Drawing
from faqbench.report.panels import Row

if TYPE_CHECKING:
    import pandas as pd

TITLE = "Error over depth"
_MOST_LINES = 10


def draw(analysis: Analysis, store: EvidenceStore) -> Drawing | None:
    """Draw one line per row, the mean over the linears of a block; the first draw of each."""
    lines: list[tuple[Row, pd.Series[float]]] = []
    for row in analysis.panel.rows:
        layers = store.of(row.runs[0].run_id).layers
        if layers is not None and len(layers) and {"block", "relative_error"} <= set(layers):
            series = layers.groupby("block")["relative_error"].mean().sort_index()
            if (series > 0).any():
                lines.append((row, series))
    lines = lines[:_MOST_LINES]
    if not lines:
        return None
    figure, (axes,) = style.new_figure(style.WIDTH, 3.0)
    used: dict[str, int] = {}
    for row, series in lines:
        used[row.method] = used.get(row.method, -1) + 1
        axes.plot(
            series.index,
            series.to_numpy(),
            color=style.color(row.method),
            marker=style.marker(row.method),
            markersize=3.5,
            linestyle=style.LINE_STYLES[used[row.method] % len(style.LINE_STYLES)],
            label=style.label(_name(row, analysis)),
        )
    axes.set_yscale("log")
    style.plain_log_ticks(axes, "y")
    axes.set_xlabel("decoder block")
    axes.set_ylabel("relative error")
    style.add_legend(figure, axes)
    blocks = sorted({int(block) for _, series in lines for block in series.index})
    return Drawing(
        figure=figure,
        caption="Mean relative error of the quantized linears in each decoder block, as recorded "
        "in layers.parquet; lower is better. The first calibration draw of each method.",
        alt="Relative error by decoder block: "
        + "; ".join(
            f"{_name(r, analysis)} {s.iloc[0]:.3g} first, {s.iloc[-1]:.3g} last" for r, s in lines
        ),
        header=("block", *(_name(row, analysis) for row, _ in lines)),
        rows=tuple(
            (str(b), *(f"{s[b]:.4g}" if b in s.index else "—" for _, s in lines)) for b in blocks
        ),
    )


def _name(row: Row, analysis: Analysis) -> str:
    several = len({r.bits for r in analysis.panel.rows if r.bits}) > 1
    return f"{row.name}, {row.bits} bits" if several else row.name
