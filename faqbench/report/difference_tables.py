"""Paired differences from the baseline, as a table and as numbers for plots and sentences."""

from __future__ import annotations

from faqbench import formatting
from faqbench.report import facts
from faqbench.report.analysis import Analysis, Family
from faqbench.report.columns import Column
from faqbench.report.comparisons import Comparison
from faqbench.statistics import percent_of_log
from faqbench.tables import Cell, Heading, Table, text_cell


def differences_table(analysis: Analysis, family: Family, name: str) -> Table | None:
    """Return a family's differences from the baseline, or None when there is nothing to pair."""
    if not family.comparisons:
        return None
    unit = " or ".join(dict.fromkeys(difference_unit(c) for c in family.columns))
    headings = (
        Heading(text="setting", numeric=False),
        Heading(text="method", numeric=False),
        Heading(text="against", numeric=False),
        Heading(text="measured on", numeric=False),
        Heading(text="difference", sub=unit, csv="difference"),
        Heading(text="95 % interval", csv="low", csv_error="high", has_error=True),
        Heading(text="p", sub="after Holm", csv="p after Holm"),
        Heading(text="verdict", numeric=False),
    )
    rows = [
        (
            text_cell(contest.label),
            Cell(
                text=c.a.short_name,
                raw=c.a.short_name,
                method=c.a.method,
                href=c.a.runs[0].run_id,
            ),
            Cell(text=c.b.short_name, raw=c.b.short_name, href=c.b.runs[0].run_id),
            text_cell(c.column.label),
            *_difference_cells(c),
        )
        for contest, c in family.comparisons
    ]
    labels = [contest.label for contest, _ in family.comparisons]
    against = facts.display_method(analysis.baseline or "")
    return Table(
        name=name,
        caption=f"{analysis.panel.model}: paired differences from {against}",
        headings=headings,
        rows=tuple(rows),
        breaks=frozenset(i for i in range(1, len(labels)) if labels[i] != labels[i - 1]),
        notes=_notes(family),
    )


def _notes(family: Family) -> tuple[str, ...]:
    """Return what a reader of the table alone must know of comparisons on one calibration draw."""
    one_draw = [c for _, c in family.comparisons if c.is_of_one_draw]
    if not one_draw:
        return ()
    text = "Verdicts on this one calibration set are about it, not about the methods."
    folders = dict.fromkeys(c.earlier for c in one_draw if c.n_earlier)
    if folders:
        text += (
            " Where earlier runs tell how far draws lie apart, intervals and p-values include it "
            f"(from {formatting.listing(list(folders))})."
        )
    return (text,)


def difference(c: Comparison) -> tuple[float, float, float]:
    """Return a difference and its interval: percent of perplexity, points, or nats."""
    if c.is_ratio:
        return percent_of_log(c.effect), percent_of_log(c.low), percent_of_log(c.high)
    scale = 100 if c.column.is_percent else 1
    return (scale * c.effect, scale * c.low, scale * c.high)


def difference_unit(column: Column) -> str:
    """Return the unit of `difference` on a column."""
    if column.kind == "perplexity":
        return "%"
    return "points" if column.is_percent else "nats" if column.kind == "kl" else column.metric


def difference_decimals(c: Comparison) -> int:
    """Return with how many decimals a difference is shown."""
    value = abs(difference(c)[0])
    if difference_unit(c.column) in ("%", "points"):
        return 1 if value < 1000 else 0
    return 4


def _difference_cells(c: Comparison) -> tuple[Cell, Cell, Cell, Cell]:
    if c.refused:
        none = Cell(text=formatting.NONE)
        return none, none, none, text_cell(f"not paired: {c.refused}")
    value, low, high = difference(c)
    decimals = difference_decimals(c)
    return (
        Cell(text=formatting.signed(value, decimals), raw=value),
        Cell(
            text=f"{formatting.signed(low, decimals)} to {formatting.signed(high, decimals)}",
            raw=low,
            raw_error=high,
        ),
        Cell(text=formatting.p_value(c.p_holm), raw=c.p_holm),
        Cell(text=c.verdict, raw=c.verdict, mark="best" if c.is_significant else ""),
    )
