"""Accuracy by method and bits: small multiples, one per task, the mean over tasks last."""

from __future__ import annotations

import math

from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures import estimates, style
from faqbench.report.figures.drawing import Drawing

TITLE = "Accuracy by method and bits"


def draw(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one set of axes per task, two beside each other."""
    panel = analysis.panel
    columns = [c for c in panel.of_kind("acc", "mean_acc") if estimates.measured(panel, c)]
    if not columns:
        return None
    lines = estimates.has_several_bits(panel)
    n_columns = 2 if len(columns) > 1 else 1
    n_rows = math.ceil(len(columns) / n_columns)
    n_methods = max(len(estimates.measured(panel, c)) for c in columns)
    height = 2.3 if lines else 0.75 + 0.27 * n_methods
    figure, all_axes = style.new_figure(
        style.WIDTH, height * n_rows, n_rows, n_columns, sharey=not lines
    )
    for i, (axes, column) in enumerate(zip(all_axes, columns, strict=False)):
        if lines:
            estimates.plot_lines(axes, panel, column)
        else:
            estimates.plot_dots(axes, panel, column, label_values=False)
            axes.set_xlabel("")
        if lines and i % n_columns == 0:
            axes.set_ylabel("accuracy, %")
        elif not lines and i >= len(columns) - n_columns:
            axes.set_xlabel("accuracy, %")
    for axes in all_axes[len(columns) :]:
        axes.set_visible(False)
    style.add_legend(figure, all_axes[0])
    means = [
        f"{row.name} at {row.bits} bits {100 * e.value:.1f} %"
        for row, e in estimates.measured(panel, columns[-1])
    ]
    return Drawing(
        figure=figure,
        caption="Higher is better. Bars are 95 % intervals over items of each value by itself; "
        "differences are paired and more precise, see below. The dashed line is full precision.",
        alt=f"Accuracy of {panel.model}, {columns[-1].label}: {', '.join(means)}.",
        header=estimates.HEADER,
        rows=estimates.data_rows(panel, columns),
    )
