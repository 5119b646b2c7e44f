"""Fidelity by method and bits: divergence from full precision, and how often the top token agrees."""

from __future__ import annotations

import dataclasses

from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures.drawing import Drawing
from faqbench.report.figures.estimates import draw_estimates
from faqbench.report.figures.facets import facets

TITLE = "Fidelity to full precision by method and bits"


def draw(analysis: Analysis, _store: EvidenceStore) -> Drawing | None:
    """Draw one set of axes per protocol and measure; of several settings, the divergence alone."""
    panel = analysis.panel
    several = len(facets(panel)) > 1
    columns = [c for c in panel.fidelity if c.kind == "kl" or not several]
    drawing = draw_estimates(panel, columns)
    caption = (
        "On the same tokens as full precision: KL is the mean divergence of the next token's "
        "distribution, lower is better; top-1 is how often the likeliest token is the same, "
        "higher is better. "
    )
    return drawing and dataclasses.replace(drawing, caption=caption + drawing.caption)
