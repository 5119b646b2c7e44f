"""Perplexity by method and bits, one set of axes per protocol: protocols are never mixed."""

from __future__ import annotations

import dataclasses

from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures.drawing import Drawing
from faqbench.report.figures.estimates import draw_estimates

TITLE = "Perplexity by method and bits"


def draw(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one set of axes per protocol and setting."""
    drawing = draw_estimates(analysis.panel, analysis.panel.of_kind("perplexity"))
    return drawing and dataclasses.replace(drawing, caption=f"Lower is better. {drawing.caption}")
