"""Values that papers published, beside ours where we measured the like, and never as ours.

`published.json` holds one entry per number: the paper's model, metric, bits and group size (null where
our source does not state them), method and value; and where ours would be found: the model's name
here, the tasks or protocols that come nearest, and the name of the metric. The FAQ paper's body is not
available to this project; all numbers come by way of the project's source material.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from faqbench.report import facts, formatting
from faqbench.report.columns import Column
from faqbench.report.panels import Panel, Row
from faqbench.report.tables import Cell, Heading, Table, estimate_cell, text_cell

_NOT_STATED = "not stated"
_Found = list[tuple[Row, Column]]


def published_table(panels: Sequence[Panel]) -> Table:
    """Return the published values, those about a model of the report first, with ours beside them."""
    entries = json.loads(files("faqbench.report").joinpath("published.json").read_text("utf-8"))
    entries.sort(key=lambda e: not any(is_about(e["slug"], p.model) for p in panels))
    names = ("model", "metric", "bits", "group size", "method", "published", "measured", "source")
    headings = [Heading(text=n, numeric=n in ("bits", "group size", "published")) for n in names]
    headings.insert(6, Heading(text="ours", numeric=False))
    models = [entry["model"] for entry in entries]
    return Table(
        name="published",
        caption="Published, not ours",
        headings=tuple(headings),
        rows=tuple(_cells(entry, _ours(entry, panels)) for entry in entries),
        breaks=frozenset(i for i in range(1, len(models)) if models[i] != models[i - 1]),
    )


def is_published(panels: Sequence[Panel]) -> bool:
    """Whether any published value is about a model of the report."""
    entries = json.loads(files("faqbench.report").joinpath("published.json").read_text("utf-8"))
    return any(is_about(entry["slug"], panel.model) for entry in entries for panel in panels)


def is_about(slug: str, model: str) -> bool:
    """Whether a published model is the one of a panel, instruction-tuned or not."""
    return model.lower().removesuffix("-instruct").removesuffix("-base") == slug


def _cells(entry: dict[str, Any], ours: _Found) -> tuple[Cell, ...]:
    group = entry["group_size"]
    return (
        text_cell(entry["model"]),
        text_cell(entry["metric"]),
        _stated(entry["bits"]),
        Cell(text="per row", raw=-1) if group == -1 else _stated(group),
        Cell(
            text=facts.display_method(entry["method"]), raw=entry["method"], method=entry["method"]
        ),
        Cell(
            text=entry["value"].replace("-", formatting.MINUS),
            raw=entry["value"].removeprefix("+"),
        ),
        _our_cell(ours),
        text_cell(entry["measured"]),
        text_cell(entry["source"]),
    )


def _stated(value: int | None) -> Cell:
    return Cell(text=_NOT_STATED if value is None else str(value), raw=value)


def _our_cell(ours: _Found) -> Cell:
    if not ours:
        return Cell(text=formatting.NONE)
    texts = []
    for row, column in ours:
        value = estimate_cell(column, column.estimate(row)).text
        unit = " %" if column.is_percent else ""
        place = row.name if row.bits is None else f"{row.name}, {row.bits} bits"
        texts.append(f"{value}{unit} ({place}, {column.label})")
    text = "; ".join(texts)
    return Cell(text=text, raw=text, href=ours[0][0].runs[0].run_id)


def _ours(entry: dict[str, Any], panels: Sequence[Panel]) -> _Found:
    """Return the rows and columns that come nearest to what was published."""
    found: _Found = []
    for panel in panels:
        if not is_about(entry["slug"], panel.model):
            continue
        columns = [
            c for c in panel.columns if c.task in entry["tasks"] and c.metric == entry["name"]
        ]
        rows = [row for row in panel.rows if row.method == entry["method"] and _fits(entry, row)]
        found += [(row, c) for c in columns for row in rows if c.estimate(row) is not None]
    return found


def _fits(entry: dict[str, Any], row: Row) -> bool:
    same_bits = entry["bits"] is None or row.bits == entry["bits"]
    group = entry["group_size"]
    return same_bits and (group is None or row.keys.get("quant.group_size") == str(group))
