"""The rows of the table that a sweep shows in the terminal when it ends."""

from __future__ import annotations

from collections.abc import Sequence

from faqbench.records import RunRecord
from faqbench.report import facts, formatting
from faqbench.report.panels import build_panels
from faqbench.report.result_tables import gates_cell
from faqbench.report.tables import Cell, estimate_cell


def summary_rows(records: Sequence[RunRecord]) -> list[dict[str, str]]:
    """Return one mapping per method and setting, its keys the headings in the order to show them.

    All mappings have the same keys; what a row does not have is an empty string. Failed records
    come last, with their error in the column `gates`.
    """
    rows: list[dict[str, str]] = []
    panels = build_panels([r for r in records if r.status == "finished"])
    for panel in panels:
        for row in panel.rows:
            cells = {"model": panel.model} if len(panels) > 1 else {}
            cells |= {"method": facts.display_method(row.method), "bits": str(row.bits or "")}
            cells |= {facts.key_label(k): v for k, v in row.shown.items()}
            if any(len(r.runs) > 1 for r in panel.rows):
                cells["draws"] = str(len(row.runs))
            for column in panel.columns:
                cell = estimate_cell(column, column.estimate(row), "")
                unit = "" if column.kind == "perplexity" else " %"
                cells[f"{column.label}{unit}"] = with_error(cell)
            bits_per_weight = row.runs[0].bits_per_weight
            cells["bits/weight"] = formatting.number(bits_per_weight, 2) if bits_per_weight else ""
            cells["time"] = formatting.seconds(sum(r.seconds for r in row.runs) / len(row.runs))
            cells["gates"] = gates_cell(row).text
            rows.append(cells)
    for record in records:
        if record.status != "finished":
            error = record.error_line
            name = facts.display_method(facts.method_name(record))
            bits = (
                "" if facts.is_baseline(record) else facts.config_value(record.config, "quant.bits")
            )
            rows.append({"method": name, "bits": bits or "", "gates": f"failed: {error}"})
    last = ["bits/weight", "time", "gates"]
    keys = list(dict.fromkeys(k for row in rows for k in row if k not in last)) + last
    return [{k: row.get(k, "") for k in keys} for row in rows]


def with_error(cell: Cell) -> str:
    """Return a cell's text with its standard error."""
    return f"{cell.text} ± {cell.error}" if cell.error else cell.text
