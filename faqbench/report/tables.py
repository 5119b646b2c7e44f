"""Every table of a report as one value, from which HTML, Markdown, LaTeX, CSV and Parquet are made.

A cell knows its text for readers, its number for sorting and files, and its mark; so the formats
cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from faqbench.report import formatting
from faqbench.report.columns import Column, Estimate


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A column's head.

    Attributes:
        text: the column's name.
        sub: a second line, such as the unit that readers see.
        numeric: whether numbers stand below it.
        has_error: whether every value has a standard error, which gets a column of its own in files.
        csv: the name in CSV and Parquet, where values are raw; `text` unless given.
        csv_error: the name of that second column; the name and "stderr" unless given.
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
        raw: the number, or text, for sorting and files.
        raw_error: the standard error, or an interval's upper end, for files.
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
    """A table; `breaks` are the rows that begin a new group, `notes` stand below, `name` its files'."""

    name: str
    caption: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[Cell, ...], ...]
    breaks: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


def text_cell(text: str) -> Cell:
    """Return a cell of plain text."""
    return Cell(text=text, raw=text)


def estimate_cell(
    column: Column, estimate: Estimate | None, mark: str = "", href: str = ""
) -> Cell:
    """Return a metric's cell: fractions in percent, perplexities and divergences as they are."""
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
        href=href,
    )


def metric_scale(column: Column) -> tuple[float, int]:
    """Return the factor and the decimals that a column's numbers are shown with."""
    if column.kind == "perplexity":
        return 1.0, 2
    return (100.0, 1) if column.is_percent else (1.0, 4)


def metric_unit(column: Column) -> str:
    """Return what a column's numbers are called on an axis or in a head."""
    names = {"perplexity": "perplexity", "kl": "KL, nats", "agreement": "agreement, %"}
    return names.get(column.kind, "acc, %" if column.is_percent else column.metric)


def metric_heading(column: Column) -> Heading:
    """Return a metric's head: where it was measured, in what unit, and which way is good."""
    arrow = "↑" if column.higher_is_better else "↓"
    task = column.label if column.kind in ("perplexity", "acc", "mean_acc") else column.task
    if column.kind == "other":
        return Heading(
            text=task, sub=f"{column.metric} {arrow}", has_error=True, csv=f"{task} {column.metric}"
        )
    name = f"{column.label} {column.metric}" if task == column.label else f"{task} {column.metric}"
    return Heading(text=task, sub=f"{metric_unit(column)} {arrow}", has_error=True, csv=name)
