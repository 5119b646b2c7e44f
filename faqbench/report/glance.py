"""What a report says at a glance: one sentence, and one row for the best recipe of each bit-width.

The first protocol's perplexity decides, or the mean accuracy where no perplexity was measured; all other
numbers stand in the tables below. What is true of several settings is counted, never averaged away, and one
calibration set supports no claim about methods here either. Weights with quantized activations are a width
of their own (`W4A8`), which nothing of another width is ranked with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from faqbench import formatting
from faqbench.report import facts
from faqbench.report.analysis import TIED, Analysis, Contest, best_of, churn_from_full
from faqbench.report.columns import Column, Row, estimate_cell, in_words, is_variant, metric_heading
from faqbench.report.comparisons import Comparison
from faqbench.report.difference_tables import difference, difference_unit
from faqbench.report.evidence import EvidenceStore
from faqbench.report.figures.drawing import key_words
from faqbench.report.panels import Panel, full_rows
from faqbench.report.verdicts import measure
from faqbench.tables import Heading, Table, TableCell, text_cell

_MOST_WIDTHS = 3
_MOST_TIES = 3
FLIPS = Heading(text="flips", csv="right to wrong", csv_error="wrong to right", has_error=True)
_Pair = tuple[Contest, Comparison]


def telling_column(analysis: Analysis) -> Column | None:
    """Return the column that decides at a glance."""
    panel = analysis.panel
    protocols = {c.task: c for c in reversed(panel.of_kind("perplexity"))}
    first = next((m.task for m in panel.rows[0].runs[0].metrics if m.task in protocols), None)
    if first is not None:
        return protocols[first]
    return next(iter(panel.of_kind("perplexity", "mean_acc", "acc")), None)


def telling_pairs(analysis: Analysis) -> list[_Pair]:
    """Return the comparisons with the baseline on the deciding column that could be made."""
    column = telling_column(analysis)
    return [(k, c) for k, c in analysis.main.comparisons if c.column == column and not c.refused]


def headline(analysis: Analysis) -> str:
    """Return the verdict in one sentence."""
    panel, column = analysis.panel, telling_column(analysis)
    pairs = telling_pairs(analysis)
    if column is None or not pairs:
        return f"Nothing of {panel.model} can be compared here yet."
    by_widths: dict[str, list[Comparison]] = {}
    for contest, c in pairs:
        by_widths.setdefault(contest.widths, []).append(c)
    shown = sorted(by_widths)[:_MOST_WIDTHS]
    clauses = [_clause(widths, by_widths[widths]) for widths in shown]
    baseline = facts.display_method(analysis.baseline or "")
    ending = f" ({measure(column)}, against {baseline})"
    text = "; ".join(clauses)
    return f"{text[:1].upper()}{text[1:]}{ending}."


def _clause(widths: str, comparisons: Sequence[Comparison]) -> str:
    """Say who leads at one width, in how many of the settings that is shown, and by how much."""
    where = f"at {in_words(widths)}"
    methods: dict[str, list[Comparison]] = {}
    for c in comparisons:
        methods.setdefault(c.a.short_name, []).append(c)
    sign = 1 if comparisons[0].column.higher_is_better else -1
    better = {m: sum(c.is_significant and c.a_is_better for c in cs) for m, cs in methods.items()}
    by_value = sorted(
        methods, key=lambda m: sign * fmean(difference(c)[0] for c in methods[m]), reverse=True
    )
    name = next((m for m in by_value if better[m]), by_value[0])
    leading = methods[name]
    baseline = leading[0].b.short_name
    if better[name]:
        many = len(leading) > 1
        others = [m for m, n in better.items() if n and m != name][:_MOST_TIES]
        also = [f"{m} in {better[m]}" if many else m for m in others]
        verb = "" if many else "so are " if len(also) > 1 else "so is "
        asides = [verb + formatting.listing(also)] if also else []
        if name != by_value[0]:
            asides.append(f"{by_value[0]}, {_range(methods[by_value[0]])}, is not shown to be")
        ending = f" ({'; '.join(asides)})" if asides else ""
        settings = f" in {better[name]} of {len(leading)} settings" if many else ""
        return f"{where} {name} is better{settings}, {_range(leading)}{ending}"
    if any(c.is_of_one_draw and c.stands and c.a_is_better for c in leading):
        return f"{where} {name} is ahead on one calibration set, {_range(leading)}, which decides nothing"
    if all(c.is_equal for c in comparisons):
        of_one = any(c.is_of_one_draw for c in comparisons)
        aside = ", for some on one calibration set alone" if of_one else ""
        return f"{where} every method equals {baseline} within the margin{aside}"
    return f"{where} no method is shown to be better"


def _range(comparisons: Sequence[Comparison]) -> str:
    """Return the differences of a method in words, from the largest gain to the smallest."""
    values = [difference(c)[0] for c in comparisons]
    ends = dict.fromkeys(formatting.signed(x, 1) for x in (min(values), max(values)))
    unit = difference_unit(comparisons[0].column)
    return f"{' to '.join(ends)}\N{NO-BREAK SPACE}{unit}"


def best_table(analysis: Analysis, store: EvidenceStore, name: str) -> Table | None:
    """Return one row per width: the best recipe by value, and who cannot be told from it."""
    panel, column = analysis.panel, telling_column(analysis)
    best = {} if column is None else _best_rows(analysis, column)
    if column is None or not best:
        return None
    full = full_rows(panel, [row for row, _ in best.values()])
    accuracy = next(iter(panel.of_kind("mean_acc") or panel.of_kind("acc")), None)
    divergence = next((c for c in panel.fidelity if c.kind == "kl" and c.task == column.task), None)
    shown = [c for c in dict.fromkeys((column, divergence, accuracy)) if c is not None]
    rows = [*((row, "") for row in full), *best.values()]
    flips = "Flips: the items that full precision answers otherwise. " if full and accuracy else ""
    return Table(
        name=name,
        caption="Best recipe per bit-width",
        headings=(
            Heading(text="bits"),
            Heading(text="best recipe", numeric=False),
            *(metric_heading(c) for c in shown),
            *([FLIPS] if full and accuracy else []),
            Heading(text="not told from it", numeric=False),
        ),
        rows=tuple(
            (
                text_cell(row.widths or formatting.NONE),
                _recipe_cell(row),
                *(replace(estimate_cell(c, c.estimate(row)), error="") for c in shown),
                *([_flips_cell(store, row, panel, accuracy)] if full and accuracy else []),
                text_cell(ties),
            )
            for row, ties in rows
        ),
        notes=(f"Best by value. {flips}Not told from it: by tests against the best of its setting.",),
    )


def _best_rows(analysis: Analysis, column: Column) -> dict[str, tuple[Row, str]]:
    """Return width -> (the row with the best value of all its settings, who ties with it)."""
    rows, sign = analysis.panel.rows, -1 if column.higher_is_better else 1
    index = analysis.panel.columns.index(column)
    best: dict[str, tuple[Row, str]] = {}
    for contest in analysis.contests:
        values = {i: e.value for i in contest.rows if (e := column.estimate(rows[i]))}
        if not values:
            continue
        first = best_of(analysis.panel, contest, column)
        if first is None:
            first = next(iter(values))
        widths = rows[first].widths
        held = best.get(widths)
        estimate = column.estimate(held[0]) if held else None
        if estimate is not None and sign * estimate.value <= sign * values[first]:
            continue
        marks = {i: analysis.main.marks.get((i, index)) for i in values}
        if marks[first] is None:
            of_one = any(rows[i].is_calibrated and len(rows[i].runs) == 1 for i in values)
            unsaid = "one calibration set each" if of_one else "cannot be said"
            ties = unsaid if len(values) > 1 else ""
        else:
            ties = _names([rows[i].short_name for i in values if i != first and marks[i] == TIED])
        best[widths] = (rows[first], ties)
    return dict(sorted(best.items(), reverse=True))


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MOST_TIES
    shown = list(names[:_MOST_TIES]) + ([f"{more} more"] if more > 0 else [])
    return formatting.listing(shown) if shown else "none"


def _recipe_cell(row: Row) -> TableCell:
    """Return a row's method with the values of its setting, which speak for themselves."""
    setting = [key_words(k, v) for k, v in row.shown.items() if not is_variant(k)]
    text = ", ".join([row.short_name, *setting])
    return TableCell(text=text, raw=row.name, method=row.method, href=row.runs[0].run_id)


def _flips_cell(store: EvidenceStore, row: Row, panel: Panel, accuracy: Column) -> TableCell:
    churn = churn_from_full(panel, store, row, accuracy)
    if churn is None:
        return TableCell(text=formatting.NONE)
    text = formatting.percent(churn.lost + churn.gained, 1)
    return TableCell(text=text, raw=churn.lost, raw_error=churn.gained)
