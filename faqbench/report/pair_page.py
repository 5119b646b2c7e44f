"""The tables of two compared runs, for the terminal and for the page alike, and their page: one file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from faqbench import formatting
from faqbench.config import UserError
from faqbench.files import atomic_write, explain_os_error
from faqbench.report.columns import estimate_cell
from faqbench.report.difference_tables import difference, difference_decimals, difference_unit
from faqbench.report.evidence import EvidenceStore, block_curves, linear_errors
from faqbench.report.facts import repeat_command
from faqbench.report.figures import FIGURES, depth
from faqbench.report.figures.drawing import FigureContent, drawing_rules, finish
from faqbench.report.layout import GENERATOR, render
from faqbench.report.run_pair import Delta, ErrorMove, RunPair
from faqbench.tables import Table, text_table

MOST_ITEMS = 24


def pair_tables(pair: RunPair) -> list[Table]:
    """Return what there is to show, in the order of a reader's questions; empty tables left out."""
    tables = [
        text_table("Keys that differ", ("key", "A", "B"), pair.keys),
        text_table(
            "Metrics, A - B",
            ("metric", "A", "B", "A - B", "95 % interval", "p after Holm", "A is"),
            tuple(_metric_row(delta) for delta in pair.metrics),
        ),
        text_table(
            "Items that flipped",
            ("task", "items", "only A right", "only B right", "only A", "only B"),
            tuple(
                (
                    f.task,
                    f"{f.n:,}",
                    str(len(f.only_a)),
                    str(len(f.only_b)),
                    _items(f.only_a),
                    _items(f.only_b),
                )
                for f in pair.flips
            ),
        ),
        text_table(
            "Windows whose loss differs most, nats per token",
            ("protocol", "window", "A", "B", "A - B"),
            tuple(
                (w.protocol, str(w.window), f"{w.a:.4f}", f"{w.b:.4f}", formatting.signed(w.a - w.b, 4))
                for w in pair.windows
            ),
            shown=5,
        ),
        *_error_tables("Linears", "linear", pair.linears),
        *_error_tables("Blocks, each alone", "block", pair.blocks),
        text_table("Cost", ("", "A", "B"), pair.costs),
        text_table("Versions and machine that differ", ("", "A", "B"), pair.environment, shown=8),
    ]
    return [table for table in tables if table.rows]


def _metric_row(delta: Delta) -> tuple[str, ...]:
    column, c = delta.column, delta.comparison
    unit = " %" if column.is_percent else ""
    cells = [estimate_cell(column, estimate) for estimate in (delta.a, delta.b)]
    values = [f"{cell.text} ± {cell.error}{unit}" if cell.error else cell.text for cell in cells]
    if c.refused:
        return (column.label, *values, formatting.NONE, formatting.NONE, formatting.NONE, c.refused)
    decimals = difference_decimals(c)
    value, low, high = (formatting.signed(x, decimals) for x in difference(c))
    return (
        column.label,
        *values,
        f"{value} {difference_unit(column)}",
        f"{low} to {high}",
        formatting.p_value(c.p_holm),
        c.verdict,
    )


def _items(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:MOST_ITEMS]))
    more = len(indices) - MOST_ITEMS
    return f"{shown} and {more} more" if more > 0 else shown or formatting.NONE


def _error_tables(title: str, head: str, moves: Sequence[ErrorMove]) -> list[Table]:
    worse = [move for move in moves if move.growth > 0]
    better = [move for move in reversed(moves) if move.growth < 0]
    return [
        text_table(
            f"{title}: where {more} errs more than {less}",
            (head, "A", "B", "A - B", "A / B"),
            tuple(_error_row(move) for move in linears),
            shown=5,
        )
        for more, less, linears in (("A", "B", worse), ("B", "A", better))
    ]


def _error_row(move: ErrorMove) -> tuple[str, ...]:
    ratio = f"{move.a / move.b:.2f}x" if move.b else formatting.NONE
    difference = formatting.MINUS if move.growth < 0 else "+"
    return (move.place, f"{move.a:.4g}", f"{move.b:.4g}", f"{difference}{abs(move.growth):.3g}", ratio)


def write_pair(
    pair: RunPair, runs: Path, target: Path, remedy: str = "set html to a file that can be written"
) -> None:
    """Write the page of two compared runs.

    Args:
        pair: compared.
        runs: their folder.
        target: the page.
        remedy: where else it can be written to, beside the sentence on what went wrong.

    Raises:
        UserError: when the file cannot be written, or is no page of ours.
    """
    if os.path.lexists(target) and not _is_page(target):
        raise UserError(f"{target} exists and is no page of faqbench, so it stays; choose another html=…")
    page = render(
        "pair.html.j2",
        pair=pair,
        tables=pair_tables(pair),
        figures=_figures(pair, EvidenceStore(runs)),
        commands=[repeat_command(row.runs[0]) for row in (pair.a, pair.b)],
    )
    with explain_os_error("write the comparison", target, f"free some space, or {remedy}"):
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
            (name, row_errors)
            for name, row in reversed(named)
            if (row_errors := linear_errors(row.runs, store))
        ]
        if len(errors) == 2 and errors[0][1].keys() != errors[1][1].keys():
            errors = errors[1:]
        maps = depth.draw_maps(errors, "of each run") if errors else None
        drawn = {"depth": depth.draw_curves(lines, "Both runs"), "linears": maps}
    return [finish(name, FIGURES[name][0], d) for name, d in drawn.items() if d is not None]
