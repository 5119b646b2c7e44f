"""Machine-readable tables of all runs: one line per run, and one line per run and metric."""

from __future__ import annotations

from collections.abc import Sequence

from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.tables import Cell, Heading, Table, text_cell


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
            *(Cell(text="", raw=x) for x in (r.bits_per_weight, r.seconds, r.peak_memory_bytes)),
        )
        for r, f in zip(records, flat, strict=True)
    )
    return Table(
        name="runs", caption="runs", headings=tuple(Heading(text=n) for n in names), rows=rows
    )


def metrics_table(records: Sequence[RunRecord]) -> Table:
    """Return one line per run and metric, at full precision."""
    names = ("run_id", "task", "name", "value", "stderr", "n", "unit")
    rows = tuple(
        (
            *map(text_cell, (r.run_id, m.task, m.name)),
            *(Cell(text="", raw=x) for x in (m.value, m.stderr, m.n)),
            text_cell(m.unit),
        )
        for r in records
        for m in r.metrics
    )
    return Table(
        name="metrics", caption="metrics", headings=tuple(Heading(text=n) for n in names), rows=rows
    )
