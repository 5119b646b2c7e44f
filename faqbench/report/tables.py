"""Every table of a report as one value, from which HTML, Markdown, LaTeX and CSV are made.

A cell knows its text for readers, its number for sorting and CSV, and its mark; so the four formats
cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from faqbench.report import facts, formatting
from faqbench.report.analysis import Analysis
from faqbench.report.comparisons import Comparison
from faqbench.report.panels import Column, Estimate, Row


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A column's head.

    Attributes:
        text: the column's name.
        sub: a second line, such as the unit that readers see.
        numeric: whether numbers stand below it.
        has_error: whether every value has a standard error, which gets a CSV column of its own.
        csv: the name in CSV, where values are raw; `text` unless given.
        csv_error: the name of that second CSV column; the name and "stderr" unless given.
    """

    text: str
    sub: str = ""
    csv: str = ""
    csv_error: str = ""
    numeric: bool = True
    has_error: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One entry.

    Attributes:
        text: what a reader sees.
        error: the standard error, shown small after the text.
        raw: the number, or text, for sorting and CSV.
        raw_error: the standard error, or an interval's upper end, for CSV.
        mark: "best", "tied" or empty.
        href: a run id to link to.
        links: (text, run id) of further links.
        tone: "bad" for what a reader must not miss.
        color: a method's colour, for its swatch.
    """

    text: str
    error: str = ""
    raw: float | str | None = None
    raw_error: float | None = None
    mark: str = ""
    href: str = ""
    links: tuple[tuple[str, str], ...] = ()
    tone: str = ""
    method: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; `breaks` are the rows that begin a new group, `name` its files' stem."""

    name: str
    caption: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[Cell, ...], ...]
    breaks: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


def text_cell(text: str) -> Cell:
    """Return a cell of plain text."""
    return Cell(text=text, raw=text)


def results_table(analysis: Analysis, name: str) -> Table:
    """Return the main table: methods x bits x metrics, one row per method and setting."""
    panel = analysis.panel
    draws = any(len(row.runs) > 1 for row in panel.rows)
    headings = [Heading(text="method", numeric=False), Heading(text="bits")]
    headings += [_key_heading(key) for key in panel.shown_keys]
    headings += [Heading(text="draws", sub="seeds")] if draws else []
    headings += [_metric_heading(column) for column in panel.columns]
    headings += [
        Heading(text="bits per weight"),
        Heading(text="time", csv="seconds"),
        Heading(text="gates", numeric=False),
    ]
    rows = []
    for i, row in enumerate(panel.rows):
        cells = [_method_cell(row), _bits_cell(row)]
        cells += [text_cell(row.shown.get(key, formatting.NONE)) for key in panel.shown_keys]
        if draws:
            n = len(row.runs)
            links = tuple((facts.seed(run), run.run_id) for run in row.runs)
            cells.append(Cell(text=str(n), raw=n, links=links if 1 < n < 7 else ()))
        cells += [
            estimate_cell(column, column.estimate(row), analysis.marks.get((i, c), ""))
            for c, column in enumerate(panel.columns)
        ]
        cells += [_bits_per_weight_cell(row), _time_cell(row), gates_cell(row)]
        rows.append(tuple(cells))
    groups = [(row.is_baseline, row.bits, _settings(row)) for row in panel.rows]
    breaks = {i for i in range(1, len(groups)) if groups[i][:2] != groups[i - 1][:2]}
    return Table(
        name=name,
        caption=f"{panel.model}: every method and metric",
        headings=tuple(headings),
        rows=tuple(rows),
        breaks=frozenset(breaks),
    )


def further_table(analysis: Analysis, name: str) -> Table | None:
    """Return the metrics that the main table leaves out, or None when there are none."""
    panel = analysis.panel
    if not panel.further:
        return None
    headings = [Heading(text="method", numeric=False), Heading(text="bits")]
    headings += [_key_heading(key) for key in panel.shown_keys]
    rows = []
    for row in panel.rows:
        cells = [_method_cell(row), _bits_cell(row)]
        cells += [text_cell(row.shown.get(key, formatting.NONE)) for key in panel.shown_keys]
        cells += [estimate_cell(column, column.estimate(row), "") for column in panel.further]
        rows.append(tuple(cells))
    return Table(
        name=name,
        caption=f"{panel.model}: further metrics",
        headings=(*headings, *(_metric_heading(column) for column in panel.further)),
        rows=tuple(rows),
    )


def comparisons_table(analysis: Analysis, name: str) -> Table | None:
    """Return the paired differences from the baseline, or None when there is nothing to pair."""
    if not analysis.comparisons:
        return None
    headings = (
        Heading(text="setting", numeric=False),
        Heading(text="method", numeric=False),
        Heading(text="against", numeric=False),
        Heading(text="measured on", numeric=False),
        Heading(text="difference", sub="% or points", csv="difference"),
        Heading(text="95 % interval", csv="low", csv_error="high", has_error=True),
        Heading(text="p", sub="after Holm", csv="p after Holm"),
        Heading(text="verdict", numeric=False),
    )
    rows = []
    for contest, c in analysis.comparisons:
        cells = [
            text_cell(contest.label),
            Cell(text=c.a.short_name, raw=c.a.short_name, method=c.a.method),
        ]
        cells += [text_cell(c.b.short_name), text_cell(c.column.label)]
        rows.append((*cells, *_difference_cells(c)))
    labels = [contest.label for contest, _ in analysis.comparisons]
    against = facts.display_method(analysis.baseline or "")
    return Table(
        name=name,
        caption=f"{analysis.panel.model}: paired differences from {against}",
        headings=headings,
        rows=tuple(rows),
        breaks=frozenset(i for i in range(1, len(labels)) if labels[i] != labels[i - 1]),
    )


def difference(c: Comparison) -> tuple[float, float, float]:
    """Return a difference and its interval, in percent of perplexity or in accuracy points."""
    if c.is_ratio:
        return (100 * math.expm1(c.effect), 100 * math.expm1(c.low), 100 * math.expm1(c.high))
    return (100 * c.effect, 100 * c.low, 100 * c.high)


def estimate_cell(column: Column, estimate: Estimate | None, mark: str) -> Cell:
    """Return a metric's cell: accuracies in percent, perplexities as they are."""
    if estimate is None:
        return Cell(text=formatting.NONE)
    scale, decimals = metric_scale(column)
    value, stderr = estimate.value * scale, estimate.stderr * scale
    error = "" if math.isnan(stderr) else formatting.number(stderr, decimals)
    return Cell(
        text=formatting.number(value, decimals),
        error=error,
        raw=estimate.value,
        raw_error=None if math.isnan(estimate.stderr) else estimate.stderr,
        mark=mark,
    )


def metric_scale(column: Column) -> tuple[float, int]:
    """Return the factor and the decimals that a column's numbers are shown with."""
    if column.kind == "perplexity":
        return 1.0, 2
    if column.kind in ("acc", "mean_acc") or column.metric.startswith("acc"):
        return 100.0, 1
    return 1.0, 4


def gates_cell(row: Row) -> Cell:
    """Return how many gates failed, or passed, over a row's runs."""
    gates = [gate for run in row.runs for gate in run.gates]
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        text = f"{len(failed)} failed"
        return Cell(text=text, raw=text, tone="bad", href=row.runs[0].run_id)
    return text_cell(f"{len(gates)} passed" if gates else formatting.NONE)


def _difference_cells(c: Comparison) -> tuple[Cell, Cell, Cell, Cell]:
    if c.refused:
        none = Cell(text=formatting.NONE)
        return none, none, none, text_cell(f"not paired: {c.refused}")
    value, low, high = difference(c)
    decimals = 1 if abs(value) < 1000 else 0
    word = "not decidable"
    if c.is_significant:
        word = "better" if c.a_is_better else "worse"
    return (
        Cell(text=formatting.signed(value, decimals), raw=value),
        Cell(
            text=f"{formatting.signed(low, decimals)} to {formatting.signed(high, decimals)}",
            raw=low,
            raw_error=high,
        ),
        Cell(text=formatting.p_value(c.p_holm), raw=c.p_holm),
        Cell(text=word, raw=word, mark="best" if c.is_significant else ""),
    )


def _key_heading(key: str) -> Heading:
    group, _, last = key.removesuffix(".name").rpartition(".")
    return Heading(text=last.replace("_", " "), sub=group, numeric=False, csv=key)


def _metric_heading(column: Column) -> Heading:
    unit = {"perplexity": "perplexity ↓", "acc": "acc, % ↑", "mean_acc": "acc, % ↑"}
    arrow = "↑" if column.higher_is_better else "↓"
    sub = unit.get(column.kind, f"{column.metric} {arrow}")
    label = column.label if column.kind != "other" else column.task
    return Heading(text=label, sub=sub, has_error=True, csv=f"{label} {column.metric}")


def _method_cell(row: Row) -> Cell:
    name = facts.display_method(row.method)
    return Cell(text=name, raw=name, href=row.runs[0].run_id, method=row.method)


def _bits_cell(row: Row) -> Cell:
    return Cell(text=formatting.NONE if row.bits is None else str(row.bits), raw=row.bits)


def _bits_per_weight_cell(row: Row) -> Cell:
    value = row.runs[0].bits_per_weight
    return Cell(text=formatting.number(value, 2), raw=value)


def _time_cell(row: Row) -> Cell:
    mean = sum(run.seconds for run in row.runs) / len(row.runs)
    return Cell(text=formatting.seconds(mean), raw=mean)


def _settings(row: Row) -> tuple[str, ...]:
    return tuple(row.shown.values())
