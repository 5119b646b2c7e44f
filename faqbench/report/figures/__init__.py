"""The plots of a report: each a function of a module here, and a line in `FIGURES`.

A module `faqbench.report.figures.<module>` has, for each of its plots,

    draw_<name>(analysis: Analysis, store: EvidenceStore) -> Drawing | None

and returns None when the runs have nothing for it to show. To add a plot: write that function with the
colours, markers and sizes of `style`, put its name, heading and module into `FIGURES`, and name in
`Drawing.header` and `rows` the numbers that it shows, since every figure carries its data as a table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from faqbench.processes import in_forks
from faqbench.report.analysis import Analysis
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures.drawing import Drawing, FigureContent, drawing_rules, finish

# name -> (heading, module), in the order of the page
FIGURES: Mapping[str, tuple[str, str]] = {
    "glance": ("Differences from the baseline", "glance"),
    "what_to_use": ("What to use", "pareto"),
    "perplexity": ("Perplexity by method and bits", "estimates"),
    "accuracy": ("Accuracy by method and bits", "estimates"),
    "differences": ("Forest plot of the paired differences", "differences"),
    "pareto": ("Quality against bits per weight", "pareto"),
    "bias": ("Quality against bias distance", "bias"),
    "draws": ("Spread over calibration draws", "draws"),
    "fidelity": ("Fidelity to full precision by method and bits", "estimates"),
    "surface": ("Window and gamma of the preview", "exponents"),
    "depth": ("Error growth over depth", "depth"),
    "linears": ("Error of every linear", "depth"),
    "exponents": ("Exponents and scales that the search chose", "exponents"),
    "cost": ("Cost by method", "pareto"),
}
Draw = Callable[[Analysis, EvidenceStore], Drawing | None]


def draw_figures(
    analysis: Analysis, store: EvidenceStore, names: Iterable[str] = FIGURES
) -> Iterator[tuple[str, str, Drawing]]:
    """Yield (name, title, drawing) of every plot that has something to show for a panel."""
    for name in names:
        title, module = FIGURES[name]
        place = importlib.import_module(f"faqbench.report.figures.{module}")
        draw: Draw = getattr(place, f"draw_{name}")
        with drawing_rules():
            drawing = draw(analysis, store)
        if drawing is not None:
            yield name, title, drawing


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
