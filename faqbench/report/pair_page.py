"""The page of two compared runs: one self-contained file, made of the same tables as the terminal's."""

from __future__ import annotations

import os
from pathlib import Path

from faqbench.config import UserError
from faqbench.files import atomic_write, explain_os_error
from faqbench.report.block_errors import block_curves, linear_errors
from faqbench.report.evidence import EvidenceStore
from faqbench.report.facts import repeat_command
from faqbench.report.figures import depth, linears
from faqbench.report.figures.drawing import Drawing, FigureContent, drawing_rules, finish
from faqbench.report.layout import GENERATOR, render
from faqbench.report.pair_tables import pair_tables
from faqbench.report.run_pair import RunPair

_REMEDY = "free some space, or set html to a file that can be written"


def write_pair(pair: RunPair, runs: Path, target: Path) -> None:
    """Write the page of two compared runs.

    Raises:
        UserError: when the file cannot be written, or is no page of ours.
    """
    if os.path.lexists(target) and not _is_page(target):
        raise UserError(
            f"{target} exists and is no page of faqbench, so it stays; choose another html=…"
        )
    page = render(
        "pair.html.j2",
        pair=pair,
        tables=pair_tables(pair),
        figures=_figures(pair, EvidenceStore(runs)),
        commands=[repeat_command(row.runs[0], row.shown) for row in (pair.a, pair.b)],
    )
    with explain_os_error("write the comparison", target, _REMEDY):
        atomic_write(target, page.encode())


def _is_page(target: Path) -> bool:
    return target.is_file() and GENERATOR in target.read_bytes()[:4096]


def _figures(pair: RunPair, store: EvidenceStore) -> list[FigureContent]:
    named = ((f"A: {pair.name_a}", pair.a), (f"B: {pair.name_b}", pair.b))
    with drawing_rules():
        lines = [
            depth.Line(name=name, method=row.method, curves=curves)
            for name, row in named
            if (curves := block_curves(row.runs, store))
        ]
        errors = [
            (name, found)
            for name, row in reversed(named)
            if (found := linear_errors(row.runs, store))
        ]
        if len(errors) == 2 and errors[0][1].keys() != errors[1][1].keys():
            errors = errors[1:]
        drawings: list[tuple[str, str, Drawing | None]] = [
            ("depth", depth.TITLE, depth.draw_curves(lines, "Both runs")),
            (
                "linears",
                linears.TITLE,
                linears.draw_maps(errors, "of each run") if errors else None,
            ),
        ]
    return [finish(name, title, d) for name, title, d in drawings if d is not None]
