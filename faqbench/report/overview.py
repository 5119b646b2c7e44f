"""The table that stands above many settings: how often each method wins, loses or cannot be told apart."""

from __future__ import annotations

from faqbench.report import formatting
from faqbench.report.analysis import Analysis
from faqbench.report.columns import Column
from faqbench.report.comparisons import Comparison
from faqbench.report.difference_tables import difference, difference_unit
from faqbench.report.tables import Cell, Heading, Table, text_cell
from faqbench.report.verdicts import measure, telling_kinds

_MANY_SETTINGS = 4
_Pair = tuple[str, str]


def overview_table(analysis: Analysis, name: str) -> Table | None:
    """Return one row per pair of methods and one column per metric, or None for few settings."""
    if len(analysis.contests) < _MANY_SETTINGS:
        return None
    kinds = telling_kinds(analysis)
    columns = [column for column in analysis.panel.columns if column.kind in kinds]
    tallies: dict[_Pair, dict[Column, list[Comparison]]] = {}
    for _, c in analysis.main.comparisons:
        if c.column in columns and not c.refused:
            row = tallies.setdefault((c.a.short_name, c.b.short_name), {})
            row.setdefault(c.column, []).append(c)
    if not tallies:
        return None
    return Table(
        name=name,
        caption="Over all settings",
        headings=(
            Heading(text="method", numeric=False),
            Heading(text="against", numeric=False),
            *(Heading(text=measure(c), sub=difference_unit(c), numeric=False) for c in columns),
        ),
        rows=tuple(
            (text_cell(a), text_cell(b), *(_tally(found.get(column, [])) for column in columns))
            for (a, b), found in tallies.items()
        ),
    )


def _tally(found: list[Comparison]) -> Cell:
    if not found:
        return Cell(text=formatting.NONE)
    n_better = sum(c.is_significant and c.a_is_better for c in found)
    n_worse = sum(c.is_significant and not c.a_is_better for c in found)
    one_draw = [c for c in found if c.stands and c.is_of_one_draw]
    n_ahead = sum(c.a_is_better for c in one_draw)
    n_behind = len(one_draw) - n_ahead
    counts = (
        f"{n} {word}"
        for n, word in (
            (n_better, "better"),
            (n_worse, "worse"),
            (n_ahead, "ahead on one calibration set"),
            (n_behind, "behind on one calibration set"),
            (sum(not c.stands for c in found), "not decidable"),
        )
        if n
    )
    values = [difference(c)[0] for c in found]
    low, high = (formatting.signed(value, 1) for value in (min(values), max(values)))
    return text_cell(f"{', '.join(counts)}; {low} to {high}")
