"""The tables with a row per method and setting, for page and terminal, and those with a line per run."""

from __future__ import annotations

from collections.abc import Sequence

from faqbench import formatting
from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.analysis import Analysis, Family, churn_from_full
from faqbench.report.columns import Column, Row, estimate_cell, metric_heading
from faqbench.report.comparisons import Churn
from faqbench.report.difference_tables import FLIPS, flips_cell
from faqbench.report.evidence import EvidenceStore
from faqbench.report.panels import Panel, build_panels
from faqbench.tables import Heading, Table, TableCell, text_cell

_MOST_SEED_LINKS = 6


def results_table(analysis: Analysis, name: str) -> Table:
    """Return the main table: methods x bits x metrics, one row per method and setting."""
    panel = analysis.panel
    others = any(facts.is_foreign(row.runs[0]) for row in panel.rows)
    headings = [
        *_leading_headings(panel),
        *([Heading(text="made by", numeric=False)] if others else []),
        *(metric_heading(column) for column in panel.columns),
        Heading(text="bits per weight"),
        Heading(text="time", csv="seconds"),
        Heading(text="gates", numeric=False),
    ]
    rows = [
        (
            *_leading_cells(panel, row),
            *([text_cell(facts.made_by(row.runs[0]))] if others else []),
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


def fidelity_table(analysis: Analysis, store: EvidenceStore, name: str) -> Table | None:
    """Return how far each row is from full precision on the same texts and items, or None if unmeasured."""
    panel = analysis.panel
    churns = _churns(panel, store)
    measured = [
        (i, row)
        for i, row in enumerate(panel.rows)
        if churns[i] or any(column.estimate(row) for column in panel.fidelity)
    ]
    if not measured:
        return None
    has_flips = any(churns)
    rows = [
        (
            *_leading_cells(panel, row),
            *_metric_cells(analysis.fidelity, i, row),
            *([flips_cell(churns[i])] if has_flips else []),
        )
        for i, row in measured
    ]
    return Table(
        name=name,
        caption=f"{panel.model}: fidelity to full precision on the same tokens and items",
        headings=(
            *_leading_headings(panel),
            *(metric_heading(c) for c in panel.fidelity),
            *([FLIPS] if has_flips else []),
        ),
        rows=tuple(rows),
    )


def _churns(panel: Panel, store: EvidenceStore) -> list[Churn | None]:
    """Return per row the items of all tasks that changed against full precision."""
    tasks = panel.of_kind("mean_acc") or panel.of_kind("acc")
    return [churn_from_full(panel, store, row, tasks[0]) if tasks else None for row in panel.rows]


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


def gates_cell(row: Row) -> TableCell:
    """Return how many gates failed, or passed, over a row's runs."""
    failed = [run for run in row.runs for gate in run.gates if not gate.passed]
    if failed:
        text = f"{len(failed)} failed"
        return TableCell(text=text, raw=text, tone="bad", href=failed[0].run_id)
    n_gates = sum(len(run.gates) for run in row.runs)
    return text_cell(f"{n_gates} passed" if n_gates else formatting.NONE)


def _leading_headings(panel: Panel) -> list[Heading]:
    headings = [Heading(text="method", numeric=False), Heading(text="bits")]
    headings += [_key_heading(key) for key in panel.shown_keys]
    return headings + ([Heading(text="draws", sub="seeds")] if _has_draws(panel) else [])


def _leading_cells(panel: Panel, row: Row) -> list[TableCell]:
    cells = [_method_cell(row), _bits_cell(row)]
    cells += [text_cell(row.shown.get(key, formatting.NONE)) for key in panel.shown_keys]
    if _has_draws(panel):
        n = len(row.runs)
        links = tuple((facts.seed(run), run.run_id) for run in row.runs)
        shown = links if 1 < n <= _MOST_SEED_LINKS else ()
        cells.append(TableCell(text=str(n), raw=n, links=shown))
    return cells


def _has_draws(panel: Panel) -> bool:
    return any(len(row.runs) > 1 for row in panel.rows)


def _metric_cells(family: Family, index: int, row: Row) -> list[TableCell]:
    return [
        estimate_cell(column, column.estimate(row), family.marks.get((index, c), ""), row.runs[0].run_id)
        for c, column in enumerate(family.columns)
    ]


def _estimates(columns: Sequence[Column], row: Row) -> list[TableCell]:
    return [estimate_cell(c, c.estimate(row), href=row.runs[0].run_id) for c in columns]


def _breaks(panel: Panel) -> frozenset[int]:
    groups = [(row.is_baseline, row.widths) for row in panel.rows]
    return frozenset(i for i in range(1, len(groups)) if groups[i] != groups[i - 1])


def _key_heading(key: str) -> Heading:
    group, _, last = key.removesuffix(".name").rpartition(".")
    return Heading(text=last.replace("_", " "), sub=group, numeric=False, csv=key)


def _method_cell(row: Row) -> TableCell:
    name = facts.display_method(row.method)
    return TableCell(text=name, raw=name, href=row.runs[0].run_id, method=row.method)


def _bits_cell(row: Row) -> TableCell:
    return TableCell(text=row.widths or formatting.NONE, raw=row.bits)


def _bits_per_weight_cell(row: Row) -> TableCell:
    value = row.runs[0].bits_per_weight
    return TableCell(text=formatting.number(value, 2), raw=value, href=row.runs[0].run_id)


def _time_cell(row: Row) -> TableCell:
    mean = sum(run.seconds for run in row.runs) / len(row.runs)
    return TableCell(text=formatting.seconds(mean), raw=mean, href=row.runs[0].run_id)


def runs_table(records: Sequence[RunRecord]) -> Table:
    """Return one line per run, with every config key that differs between runs."""
    flat = [facts.flatten(r.config) for r in records]
    hidden = ("paths.", "tracking.", "report.", "model.notes")
    keys = list(dict.fromkeys(k for f in flat for k in f if not k.startswith(hidden)))
    keys = [k for k in keys if len({f.get(k) for f in flat}) > 1]
    names = ("run_id", "model", "method", *keys, "bits_per_weight", "seconds", "peak_memory_bytes")
    rows = tuple(
        (
            *map(text_cell, (r.run_id, facts.model_name(r), facts.method_name(r))),
            *(text_cell(f.get(k, "")) for k in keys),
            *(TableCell(text="", raw=x) for x in (r.bits_per_weight, r.seconds, r.peak_memory_bytes)),
        )
        for r, f in zip(records, flat, strict=True)
    )
    return Table(name="runs", caption="runs", headings=tuple(Heading(text=n) for n in names), rows=rows)


def metrics_table(records: Sequence[RunRecord]) -> Table:
    """Return one line per run and metric, at full precision."""
    names = ("run_id", "task", "name", "value", "stderr", "n", "unit")
    rows = tuple(
        (
            *map(text_cell, (r.run_id, m.task, m.name)),
            *(TableCell(text="", raw=x) for x in (m.value, m.stderr, m.n)),
            text_cell(m.unit),
        )
        for r in records
        for m in r.metrics
    )
    return Table(
        name="metrics", caption="metrics", headings=tuple(Heading(text=n) for n in names), rows=rows
    )


def summary_table(records: Sequence[RunRecord]) -> Table:
    """Return the table that a sweep shows in the terminal when it ends, one row per method and setting.

    What a row does not have is an empty text. Failed records come last, with their error in the column
    `gates`.
    """
    rows: list[dict[str, str]] = []
    panels = build_panels([r for r in records if r.status == "finished"])
    for panel in panels:
        for row in panel.rows:
            cells = {"model": panel.model} if len(panels) > 1 else {}
            cells |= {"method": facts.display_method(row.method), "bits": row.widths}
            cells |= {facts.key_label(k): v for k, v in row.shown.items()}
            if any(len(r.runs) > 1 for r in panel.rows):
                cells["draws"] = str(len(row.runs))
            for column in panel.columns:
                cell = estimate_cell(column, column.estimate(row), "")
                unit = "" if column.kind == "perplexity" else " %"
                cells[f"{column.label}{unit}"] = cell.whole_text
            bits_per_weight = row.runs[0].bits_per_weight
            cells["bits/weight"] = formatting.number(bits_per_weight, 2) if bits_per_weight else ""
            cells["time"] = formatting.seconds(sum(r.seconds for r in row.runs) / len(row.runs))
            cells["gates"] = gates_cell(row).text
            rows.append(cells)
    for record in records:
        if record.status != "finished":
            error = record.error_line
            name = facts.display_method(facts.method_name(record))
            widths = facts.widths(record, facts.deciding_keys(record))
            rows.append({"method": name, "bits": widths, "gates": f"failed: {error}"})
    last = ["bits/weight", "time", "gates"]
    keys = list(dict.fromkeys(k for row in rows for k in row if k not in last)) + last
    return Table.of([{k: row.get(k, "") for k in keys} for row in rows])
