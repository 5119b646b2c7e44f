"""The plots of a report: one file each, one line in `FIGURES` each.

Contract. A module `faqbench.report.figures.<name>` has

    TITLE: str                                          the figure's heading
    draw(analysis: Analysis, store: EvidenceStore) -> Drawing | None

and returns None when the runs have nothing for it to show. To add a plot: write that file with the
colours, markers and sizes of `style`, put its name into `FIGURES`, and name in `Drawing.header` and
`rows` the numbers that it shows, since every figure carries its data as a table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures.drawing import Drawing, drawing_rules

FIGURES = (
    "perplexity",
    "accuracy",
    "differences",
    "pareto",
    "bias",
    "draws",
    "fidelity",
    "surface",
    "depth",
    "linears",
    "exponents",
    "cost",
)


def draw_figures(
    analysis: Analysis, store: EvidenceStore, names: Sequence[str] = FIGURES
) -> Iterator[tuple[str, str, Drawing]]:
    """Yield (name, title, drawing) of every plot that has something to show for a panel."""
    for name in names:
        module = importlib.import_module(f"faqbench.report.figures.{name}")
        draw = cast("Callable[[Analysis, EvidenceStore], Drawing | None]", module.draw)
        with drawing_rules():
            drawing = draw(analysis, store)
        if drawing is not None:
            yield name, str(module.TITLE), drawing
