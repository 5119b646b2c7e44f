"""The tables of two compared runs, for the terminal and for the page alike: rows of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from faqbench.report import formatting
from faqbench.report.difference_tables import difference, difference_decimals, difference_unit
from faqbench.report.run_pair import Delta, ErrorMove, RunPair
from faqbench.report.tables import estimate_cell

MOST_ITEMS = 24


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """A table of text; `shown` rows are enough for a glance, `rows` are all."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    shown: int


def pair_tables(pair: RunPair) -> list[PairTable]:
    """Return what there is to show, in the order of a reader's questions; empty tables left out."""
    tables = [
        PairTable(
            title="Keys that differ",
            heads=("key", "A", "B"),
            rows=pair.keys,
            shown=len(pair.keys),
        ),
        PairTable(
            title="Metrics, A - B",
            heads=("metric", "A", "B", "A - B", "95 % interval", "p after Holm", "A is"),
            rows=tuple(_metric_row(delta) for delta in pair.metrics),
            shown=len(pair.metrics),
        ),
        PairTable(
            title="Items that flipped",
            heads=("task", "items", "only A right", "only B right", "only A", "only B"),
            rows=tuple(
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
            shown=len(pair.flips),
        ),
        PairTable(
            title="Windows whose loss differs most, nats per token",
            heads=("protocol", "window", "A", "B", "A - B"),
            rows=tuple(
                (
                    w.protocol,
                    str(w.window),
                    f"{w.a:.4f}",
                    f"{w.b:.4f}",
                    formatting.signed(w.a - w.b, 4),
                )
                for w in pair.windows
            ),
            shown=5,
        ),
        *_error_tables("Linears", "linear", pair.linears),
        *_error_tables("Blocks, each alone", "block", pair.blocks),
        PairTable(title="Cost", heads=("", "A", "B"), rows=pair.costs, shown=len(pair.costs)),
        PairTable(
            title="Versions and machine that differ",
            heads=("", "A", "B"),
            rows=pair.environment,
            shown=8,
        ),
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


def _error_tables(title: str, head: str, moves: Sequence[ErrorMove]) -> list[PairTable]:
    worse = [move for move in moves if move.growth > 0]
    better = [move for move in reversed(moves) if move.growth < 0]
    return [
        PairTable(
            title=f"{title}: where {more} errs more than {less}",
            heads=(head, "A", "B", "A - B", "A / B"),
            rows=tuple(_error_row(move) for move in found),
            shown=5,
        )
        for more, less, found in (("A", "B", worse), ("B", "A", better))
    ]


def _error_row(move: ErrorMove) -> tuple[str, ...]:
    ratio = f"{move.a / move.b:.2f}x" if move.b else formatting.NONE
    difference = formatting.MINUS if move.growth < 0 else "+"
    return (
        move.place,
        f"{move.a:.4g}",
        f"{move.b:.4g}",
        f"{difference}{abs(move.growth):.3g}",
        ratio,
    )
