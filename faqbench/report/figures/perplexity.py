"""Perplexity by method and bits, one set of axes per protocol: protocols are never mixed."""

from __future__ import annotations

from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import estimates, style
from faqbench.report.figures.drawing import Drawing

TITLE = "Perplexity by method and bits"


def draw(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one set of axes per protocol, below each other."""
    panel = analysis.panel
    columns = [c for c in panel.of_kind("perplexity") if estimates.measured(panel, c)]
    if not columns:
        return None
    lines = estimates.has_several_bits(panel)
    n_rows = max(len(estimates.measured(panel, c)) for c in columns)
    height = 2.9 if lines else 0.9 + 0.36 * n_rows
    figure, all_axes = style.new_figure(style.WIDTH, height * len(columns), len(columns), 1)
    log = False
    for axes, column in zip(all_axes, columns, strict=True):
        log = log or estimates.spans_decades(panel, column)
        if lines:
            estimates.plot_lines(axes, panel, column)
            axes.set_ylabel("perplexity")
        else:
            estimates.plot_dots(axes, panel, column, label_values=True)
            axes.set_xlabel("perplexity")
    style.add_legend(figure, all_axes[0])
    best = "; ".join(_extremes(analysis, column.label) for column in columns)
    scale = " The scale is logarithmic." if log else ""
    return Drawing(
        figure=figure,
        caption="Lower is better. Bars are 95 % intervals over windows of each value by itself; "
        "differences are paired and far more precise, see below. The dashed line is full "
        f"precision.{scale}",
        alt=f"Perplexity by method and bits of {panel.model}. {best}.",
        header=estimates.HEADER,
        rows=estimates.data_rows(panel, columns),
    )


def _extremes(analysis: Analysis, label: str) -> str:
    panel = analysis.panel
    column = next(c for c in panel.columns if c.label == label)
    rows = sorted(estimates.measured(panel, column), key=lambda pair: pair[1].value)
    (best, low), (worst, high) = rows[0], rows[-1]
    return (
        f"On {label} from {low.value:,.2f} ({best.name}, {best.bits} bits) "
        f"to {high.value:,.2f} ({worst.name}, {worst.bits} bits)"
    )
