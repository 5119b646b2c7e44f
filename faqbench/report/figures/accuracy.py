"""Accuracy by method and bits: small multiples, one per task, the mean over tasks last."""

from __future__ import annotations

import dataclasses

from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures.drawing import Drawing
from faqbench.report.figures.estimates import draw_estimates
from faqbench.report.figures.facets import facets

TITLE = "Accuracy by method and bits"


def draw(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one set of axes per task; of several settings, the mean over tasks alone."""
    panel = analysis.panel
    means = panel.of_kind("mean_acc")
    columns = means if means and len(facets(panel)) > 1 else panel.of_kind("acc", "mean_acc")
    drawing = draw_estimates(panel, columns)
    return drawing and dataclasses.replace(drawing, caption=f"Higher is better. {drawing.caption}")
