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
from contextlib import contextmanager
from functools import partial
from typing import cast

from faqbench.forked import in_forks
from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures.drawing import Drawing, FigureContent, drawing_rules, finish

FIGURES = (
    "glance",
    "what_to_use",
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


@contextmanager
def finished_figures(
    analyses: Sequence[tuple[Analysis, str]], store: EvidenceStore
) -> Iterator[Callable[[], list[tuple[FigureContent, ...]]]]:
    """Begin to draw the plots of some panels, and give a function that waits for them.

    Args:
        analyses: what is known of a panel, and the ending of its figures' names.
        store: where the runs' tables are read.
    """
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_svg  # noqa: F401 (once here, not in each fork)

    work = [partial(_finished, a, store, name, end) for a, end in analyses for name in FIGURES]
    with in_forks(work) as results:

        def by_panel() -> list[tuple[FigureContent, ...]]:
            finished = iter(results())
            return [tuple(f for _ in FIGURES for f in next(finished)) for _ in analyses]

        yield by_panel


def _finished(analysis: Analysis, store: EvidenceStore, name: str, end: str) -> list[FigureContent]:
    drawn = draw_figures(analysis, store, [name])
    return [finish(kind, title, drawing, end) for kind, title, drawing in drawn]
