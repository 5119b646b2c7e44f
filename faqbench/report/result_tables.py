"""The tables with a row per method and setting: results, fidelity to full precision, the rest."""

from __future__ import annotations

from collections.abc import Sequence

from faqbench.report import facts, formatting
from faqbench.report.analysis import Analysis, Family
from faqbench.report.columns import Column
from faqbench.report.panels import Panel, Row
from faqbench.report.tables import (
    Cell,
    Heading,
    Table,
    estimate_cell,
    metric_heading,
    text_cell,
)

_MOST_SEED_LINKS = 6


def results_table(analysis: Analysis, name: str) -> Table:
    """Return the main table: methods x bits x metrics, one row per method and setting."""
    panel = analysis.panel
    headings = [
        *_leading_headings(panel),
        *(metric_heading(column) for column in panel.columns),
        Heading(text="bits per weight"),
        Heading(text="time", csv="seconds"),
        Heading(text="gates", numeric=False),
    ]
    rows = [
        (
            *_leading_cells(panel, row),
            *_metric_cells(analysis.main, i, row),
            _bits_per_weight_cell(row),
            _time_cell(row),
            gates_cell(row),
        )
        for i, row in enumerate(panel.rows)
    ]
    return Table(
        name=name,
        caption=f"{panel.model}: every method and metric",
        headings=tuple(headings),
        rows=tuple(rows),
        breaks=_breaks(panel),
        notes=facts.truncation_notes([run for row in panel.rows for run in row.runs]),
    )


def fidelity_table(analysis: Analysis, name: str) -> Table | None:
    """Return how far each row is from full precision on the same tokens, or None if unmeasured."""
    panel = analysis.panel
    if not panel.fidelity:
        return None
    known = [
        (i, row)
        for i, row in enumerate(panel.rows)
        if any(column.estimate(row) for column in panel.fidelity)
    ]
    rows = [
        (*_leading_cells(panel, row), *_metric_cells(analysis.fidelity, i, row)) for i, row in known
    ]
    return Table(
        name=name,
        caption=f"{panel.model}: fidelity to full precision on the same tokens",
        headings=(*_leading_headings(panel), *(metric_heading(c) for c in panel.fidelity)),
        rows=tuple(rows),
    )


def further_table(analysis: Analysis, name: str) -> Table | None:
    """Return the metrics that the other tables leave out, or None when there are none."""
    panel = analysis.panel
    if not panel.further:
        return None
    rows = [(*_leading_cells(panel, row), *_estimates(panel.further, row)) for row in panel.rows]
    return Table(
        name=name,
        caption=f"{panel.model}: further metrics",
        headings=(*_leading_headings(panel), *(metric_heading(c) for c in panel.further)),
        rows=tuple(rows),
    )


def gates_cell(row: Row) -> Cell:
    """Return how many gates failed, or passed, over a row's runs."""
    failed = [run for run in row.runs for gate in run.gates if not gate.passed]
    if failed:
        text = f"{len(failed)} failed"
        return Cell(text=text, raw=text, tone="bad", href=failed[0].run_id)
    n_gates = sum(len(run.gates) for run in row.runs)
    return text_cell(f"{n_gates} passed" if n_gates else formatting.NONE)


def _leading_headings(panel: Panel) -> list[Heading]:
    headings = [Heading(text="method", numeric=False), Heading(text="bits")]
    headings += [_key_heading(key) for key in panel.shown_keys]
    return headings + ([Heading(text="draws", sub="seeds")] if _has_draws(panel) else [])


def _leading_cells(panel: Panel, row: Row) -> list[Cell]:
    cells = [_method_cell(row), _bits_cell(row)]
    cells += [text_cell(row.shown.get(key, formatting.NONE)) for key in panel.shown_keys]
    if _has_draws(panel):
        n = len(row.runs)
        links = tuple((facts.seed(run), run.run_id) for run in row.runs)
        shown = links if 1 < n <= _MOST_SEED_LINKS else ()
        cells.append(Cell(text=str(n), raw=n, links=shown))
    return cells


def _has_draws(panel: Panel) -> bool:
    return any(len(row.runs) > 1 for row in panel.rows)


def _metric_cells(family: Family, index: int, row: Row) -> list[Cell]:
    return [
        estimate_cell(
            column, column.estimate(row), family.marks.get((index, c), ""), row.runs[0].run_id
        )
        for c, column in enumerate(family.columns)
    ]


def _estimates(columns: Sequence[Column], row: Row) -> list[Cell]:
    return [estimate_cell(c, c.estimate(row), href=row.runs[0].run_id) for c in columns]


def _breaks(panel: Panel) -> frozenset[int]:
    groups = [(row.is_baseline, row.bits) for row in panel.rows]
    return frozenset(i for i in range(1, len(groups)) if groups[i] != groups[i - 1])


def _key_heading(key: str) -> Heading:
    group, _, last = key.removesuffix(".name").rpartition(".")
    return Heading(text=last.replace("_", " "), sub=group, numeric=False, csv=key)


def _method_cell(row: Row) -> Cell:
    name = facts.display_method(row.method)
    return Cell(text=name, raw=name, href=row.runs[0].run_id, method=row.method)


def _bits_cell(row: Row) -> Cell:
    return Cell(text=formatting.NONE if row.bits is None else str(row.bits), raw=row.bits)


def _bits_per_weight_cell(row: Row) -> Cell:
    value = row.runs[0].bits_per_weight
    return Cell(text=formatting.number(value, 2), raw=value, href=row.runs[0].run_id)


def _time_cell(row: Row) -> Cell:
    mean = sum(run.seconds for run in row.runs) / len(row.runs)
    return Cell(text=formatting.seconds(mean), raw=mean, href=row.runs[0].run_id)
