"""Paired differences from the baseline, as a table and as numbers for plots and sentences."""

from __future__ import annotations

import math

from faqbench import formatting
from faqbench.report import facts
from faqbench.report.analysis import Analysis, Family
from faqbench.report.columns import Column, Row
from faqbench.report.comparisons import Churn, Comparison, compare_rows, with_holm
from faqbench.report.evidence import EvidenceStore
from faqbench.statistics import percent_of_log
from faqbench.tables import Heading, Table, TableCell, text_cell

_MARGIN = (
    "Margin, stated beforehand: {}. Equal within it is what two one-sided tests show; would show: the "
    "difference that these data would find four times in five, before correction."
)
_NO_MARGIN = (
    "No margin was stated before these runs (report.margin), so nothing here is called equal; would show: "
    "the difference that these data would find four times in five, before correction."
)


def differences_table(analysis: Analysis, family: Family, name: str) -> Table | None:
    """Return a family's differences from the baseline, or None when there is nothing to pair."""
    if not family.comparisons:
        return None
    unit = " or ".join(dict.fromkeys(difference_unit(c) for c in family.columns))
    margin = any(not math.isnan(c.margin) for _, c in family.comparisons)
    has_flips = any(c.churn is not None for _, c in family.comparisons)
    headings = (
        Heading(text="setting", numeric=False),
        Heading(text="method", numeric=False),
        Heading(text="against", numeric=False),
        Heading(text="measured on", numeric=False),
        *_difference_headings(unit),
        *([FLIPS] if has_flips else []),
        *([Heading(text="p equal", sub="after Holm", csv="p equal after Holm")] if margin else []),
    )
    rows = [
        (
            text_cell(contest.label),
            TableCell(text=c.a.short_name, raw=c.a.short_name, method=c.a.method, href=c.a.runs[0].run_id),
            TableCell(text=c.b.short_name, raw=c.b.short_name, href=c.b.runs[0].run_id),
            text_cell(c.column.label),
            *_difference_cells(c),
            *([flips_cell(c.churn)] if has_flips else []),
            *([TableCell(text=formatting.p_value(c.p_equal_holm), raw=c.p_equal_holm)] if margin else []),
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
        notes=_notes(analysis, family),
    )


def tools_table(analysis: Analysis, store: EvidenceStore, name: str) -> Table | None:
    """Return the rows of other tools beside ours of the same recipe, or None where there are none.

    The preset that a tool's row is paired with is its own `quant.like`.
    """
    rows, columns = analysis.panel.rows, analysis.panel.of_kind("perplexity", "mean_acc", "acc")
    pairs = [
        (contest, rows[a], rows[b])
        for contest in analysis.contests
        for a in contest.rows
        for b in contest.rows
        if facts.is_foreign(rows[a].runs[0])
        and facts.config_value(rows[a].runs[0].config, "quant.like") == rows[b].method
    ]
    compared = with_holm(
        [
            compare_rows(store, theirs, ours, column, analysis.margin)
            for _, theirs, ours in pairs
            for column in columns
        ]
    )
    if not compared:
        return None
    lines = []
    for i, c in enumerate(compared):
        contest, theirs, ours = pairs[i // len(columns)]
        lines.append(
            (
                text_cell(contest.label),
                TableCell(text=theirs.short_name, raw=theirs.method, href=theirs.runs[0].run_id),
                text_cell(facts.made_by(theirs.runs[0])),
                TableCell(text=ours.short_name, raw=ours.method, href=ours.runs[0].run_id),
                text_cell(c.column.label),
                *_difference_cells(c),
                text_cell(_efforts(theirs, ours)),
                text_cell(_options(theirs)),
                text_cell(_options(ours)),
            )
        )
    unit = " or ".join(dict.fromkeys(difference_unit(c) for c in columns))
    return Table(
        name=name,
        caption=f"{analysis.panel.model}: the same recipe by another tool",
        headings=(
            Heading(text="setting", numeric=False),
            Heading(text="other tool", numeric=False),
            Heading(text="made by", numeric=False),
            Heading(text="ours", numeric=False),
            Heading(text="measured on", numeric=False),
            *_difference_headings(unit),
            Heading(text="time and peak memory", sub="theirs; ours", numeric=False),
            Heading(text="its options", numeric=False),
            Heading(text="our options", numeric=False),
        ),
        rows=tuple(lines),
        notes=(
            "Both saw the same calibration tokens, bits and group size; what differs is in the options. "
            "Times are of quantizing alone, where it was done in these runs and not found in a cache.",
        ),
    )


def _difference_headings(unit: str) -> tuple[Heading, ...]:
    """Return the heads of `_difference_cells`."""
    return (
        Heading(text="difference", sub=unit, csv="difference"),
        Heading(text="95 % interval", csv="low", csv_error="high", has_error=True),
        Heading(text="p", sub="after Holm", csv="p after Holm"),
        Heading(text="verdict", numeric=False),
        Heading(text="would show", sub=unit, csv="detectable"),
    )


def _efforts(theirs: Row, ours: Row) -> str:
    """Return the mean seconds and the largest peak of two rows' runs, where they are known."""
    words = []
    for row in (theirs, ours):
        efforts = [facts.effort(run) for run in row.runs]
        seconds = [s for s, _ in efforts if s is not None]
        peaks = [p for _, p in efforts if p is not None]
        if not seconds or not peaks:
            words.append("not measured")
            continue
        mean = formatting.seconds(sum(seconds) / len(seconds))
        words.append(f"{mean}, {formatting.n_bytes(max(peaks))}")
    return "; ".join(words)


def _options(row: Row) -> str:
    """Return what a row's method was told, in the words of the tool that it is of."""
    config = row.runs[0].config
    if facts.is_foreign(row.runs[0]):
        options = (config["quant"].get("external") or {}).get("options") or {}
        return ", ".join(f"{k}={facts.as_text(v)}" for k, v in options.items()) or "none stated"
    own_options = facts.flatten(row.runs[0].method.identity(config["quant"]))
    return ", ".join(f"{k}={v}" for k, v in own_options.items() if "." in k) or "none"


def _notes(analysis: Analysis, family: Family) -> tuple[str, ...]:
    """Return what a reader of the table alone must know: of the margin, and of one calibration draw."""
    margin = _MARGIN.format(analysis.margin) if analysis.margin else _NO_MARGIN
    one_draw = [c for _, c in family.comparisons if c.is_of_one_draw]
    if not one_draw:
        return (margin,)
    text = "Verdicts on this one calibration set are about it, not about the methods."
    folders = dict.fromkeys(c.earlier for c in one_draw if c.n_earlier)
    if folders:
        text += (
            " Where earlier runs tell how far draws lie apart, intervals and p-values include it "
            f"(from {formatting.listing(list(folders))})."
        )
    return (margin, text)


def difference(c: Comparison) -> tuple[float, float, float]:
    """Return a difference and its interval: percent of perplexity, points, or nats."""
    return in_unit(c, c.effect), in_unit(c, c.low), in_unit(c, c.high)


def in_unit(c: Comparison, effect: float) -> float:
    """Return an effect in the unit of `difference`."""
    return percent_of_log(effect) if c.is_ratio else (100 if c.column.is_percent else 1) * effect


def detectable(c: Comparison) -> float:
    """Return the smallest difference that this comparison would show, before any correction."""
    return math.nan if c.error is None else in_unit(c, c.error.detectable())


def with_unit(c: Comparison, value: float) -> str:
    """Return a size, such as the smallest detectable one, with its unit."""
    unit = difference_unit(c.column)
    decimals = 1 if unit in ("%", "points") else 4
    return f"{formatting.number(value, decimals)}\N{NO-BREAK SPACE}{unit}"


def flips_text(churn: Churn) -> str:
    """Return which share of the items went from right to wrong, and which the other way."""
    return f"{formatting.percent(churn.lost, 1)} lost, {formatting.percent(churn.gained, 1)} gained"


def flips_cell(churn: Churn | None) -> TableCell:
    """Return the items that changed, as shares."""
    if churn is None:
        return TableCell(text=formatting.NONE)
    return TableCell(text=flips_text(churn), raw=churn.lost, raw_error=churn.gained)


FLIPS = Heading(
    text="flips", sub="right to wrong, wrong to right", csv="right to wrong",
    csv_error="wrong to right", has_error=True,
)  # fmt: skip


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


def _difference_cells(c: Comparison) -> tuple[TableCell, ...]:
    if c.refused:
        none = TableCell(text=formatting.NONE)
        return none, none, none, text_cell(f"not paired: {c.refused}"), none
    verdict = f"{c.verdict}, within the margin" if c.is_significant and c.is_equal else c.verdict
    least = detectable(c)
    value, low, high = difference(c)
    decimals = difference_decimals(c)
    return (
        TableCell(text=formatting.signed(value, decimals), raw=value),
        TableCell(
            text=f"{formatting.signed(low, decimals)} to {formatting.signed(high, decimals)}",
            raw=low,
            raw_error=high,
        ),
        TableCell(text=formatting.p_value(c.p_holm), raw=c.p_holm),
        TableCell(text=verdict, raw=verdict, mark="best" if c.is_significant else ""),
        TableCell(text=formatting.number(least, 1 if decimals < 4 else 4), raw=least),
    )
