"""What papers and tools published, beside ours where we measured the like, and never as ours.

An entry of `published.yaml` holds the numbers of one source and is named after the experiment that runs
their cells (`experiment=reproduce-awq-llama2-7b`). Groups share fields, and a cell may have its own:

    model, metric, measured, source    in the source's words; bits and group_size null where not stated
    slug, tasks, name, method          where ours is found: the model's name here, the protocols or tasks
                                       that come nearest, the name of the number, and the preset
    value                              as it was printed
    protocol                           keys that a run must have to be read against it
    tolerance                          percent within which ours passes, set by us; null where the source
                                       does not state enough for anybody to pass or fail

So a number of ours gets one of four verdicts: pass, fail, "protocol not stated", or the keys in which its
protocol is another. All numbers come by way of the project's source material; the body of the FAQ paper is
not available to it. To add a source: write that entry, and the experiment of its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from faqbench import formatting
from faqbench.report import facts
from faqbench.report.columns import Column, Row, estimate_cell
from faqbench.report.panels import Panel
from faqbench.tables import Heading, Table, TableCell, text_cell

_NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class Published:
    """One published number; see the module's docstring for its fields."""

    model: str
    slug: str
    metric: str
    tasks: list[str]
    name: str
    measured: str
    source: str
    protocol: dict[str, str | int | float | bool | None]
    tolerance: float | None
    method: str
    value: str
    bits: int | None = None
    group_size: int | None = None

    @property
    def number(self) -> float:
        """The value as a number."""
        return float(re.sub("[^0-9.eE+-]", "", self.value.split()[0]))


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class _Source:
    needs: str
    groups: list[dict[str, Any]]


def reproductions() -> dict[str, str]:
    """Return what each reproduction needs, by the name of its experiment."""
    return {name: source.needs for name, source in _sources().items()}


def published_table(panels: Sequence[Panel]) -> Table:
    """Return the published values, those about a model of the report first, with ours beside them."""
    entries = sorted(_entries(), key=lambda e: not any(is_about(e.slug, p.model) for p in panels))
    names = ("model", "metric", "bits", "group size", "method", "published", "ours", "verdict")
    headings = [Heading(text=n, numeric=n in ("bits", "group size", "published")) for n in names]
    headings += [Heading(text=n, numeric=False) for n in ("measured", "source")]
    models = [entry.model for entry in entries]
    return Table(
        name="published",
        caption="Published, not ours",
        headings=tuple(headings),
        rows=tuple(_cells(entry, panels) for entry in entries),
        breaks=frozenset(i for i in range(1, len(models)) if models[i] != models[i - 1]),
    )


def measured_beside(panels: Sequence[Panel]) -> Table | None:
    """Return the published values that have one of ours beside them, or None where none has."""
    table = published_table(panels)
    places = {heading.text: i for i, heading in enumerate(table.headings)}
    rows = [row for row in table.rows if row[places["ours"]].href]
    if not rows:
        return None
    kept = [places[n] for n in places if n not in ("metric", "measured", "source")]
    return Table(
        caption=table.caption,
        headings=tuple(table.headings[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in rows),
    )


def is_published(panels: Sequence[Panel]) -> bool:
    """Whether any published value is about a model of the report."""
    return any(is_about(entry.slug, panel.model) for entry in _entries() for panel in panels)


def is_about(slug: str, model: str) -> bool:
    """Whether a published model is the one of a panel, instruction-tuned or not."""
    return model.lower().removesuffix("-instruct").removesuffix("-base") == slug


def _entries() -> list[Published]:
    return [
        TypeAdapter(Published).validate_python({k: v for k, v in group.items() if k != "cells"} | cell)
        for source in _sources().values()
        for group in source.groups
        for cell in group["cells"]
    ]


@cache
def _sources() -> dict[str, _Source]:
    table = yaml.safe_load(files("faqbench.report").joinpath("published.yaml").read_text("utf-8"))
    return TypeAdapter(dict[str, _Source]).validate_python(table)


def _cells(entry: Published, panels: Sequence[Panel]) -> tuple[TableCell, ...]:
    ours = list(_ours(entry, panels))
    return (
        text_cell(entry.model),
        text_cell(entry.metric),
        _stated(entry.bits),
        TableCell(text="per row", raw=-1) if entry.group_size == -1 else _stated(entry.group_size),
        TableCell(text=facts.display_method(entry.method), raw=entry.method, method=entry.method),
        TableCell(text=entry.value.replace("-", formatting.MINUS), raw=entry.value.removeprefix("+")),
        _our_cell(ours),
        _verdict_cell(entry, ours),
        text_cell(entry.measured),
        text_cell(entry.source),
    )


def _stated(value: int | None) -> TableCell:
    return TableCell(text=_NOT_STATED if value is None else str(value), raw=value)


def _our_cell(ours: Sequence[tuple[Row, Column]]) -> TableCell:
    if not ours:
        return TableCell(text=formatting.NONE)
    texts = []
    for row, column in ours:
        value = estimate_cell(column, column.estimate(row)).text
        unit = " %" if column.is_percent else ""
        place = row.heading
        texts.append(f"{value}{unit} ({place}, {column.label})")
    text = "; ".join(texts)
    return TableCell(text=text, raw=text, href=ours[0][0].runs[0].run_id)


def _verdict_cell(entry: Published, ours: Sequence[tuple[Row, Column]]) -> TableCell:
    verdicts = list(dict.fromkeys(_verdict(entry, row, column) for row, column in ours))
    text = "; ".join(verdicts) or formatting.NONE
    return TableCell(text=text, raw=text, tone="bad" if text.startswith("fail") else "")


def _verdict(entry: Published, row: Row, column: Column) -> str:
    estimate = column.estimate(row)
    assert estimate is not None, "only measured columns are found"
    if entry.tolerance is None:
        return "protocol not stated"
    config = row.runs[0].config
    settings = {key: facts.config_value(config, key) for key in entry.protocol}
    stated = {k: None if v is None else facts.as_text(v) for k, v in entry.protocol.items()}
    other = [f"{facts.key_label(k)}={v}" for k, v in settings.items() if v != stated[k]]
    if other:
        return f"another protocol ({', '.join(other)})"
    off = 100 * (estimate.value / entry.number - 1)
    word = "pass" if abs(off) <= entry.tolerance else "fail"
    within = f"within {entry.tolerance:g}\N{NO-BREAK SPACE}%"
    return f"{word} ({formatting.signed(off, 1)}\N{NO-BREAK SPACE}%, {within} asked)"


def _ours(entry: Published, panels: Sequence[Panel]) -> Iterator[tuple[Row, Column]]:
    """Yield the rows and columns that come nearest to what was published."""
    for panel in panels:
        if not is_about(entry.slug, panel.model):
            continue
        rows = [row for row in panel.rows if row.method == entry.method and _fits(entry, row)]
        for column in panel.columns:
            if column.task in entry.tasks and column.metric == entry.name:
                yield from ((r, column) for r in rows if column.estimate(r) is not None)


def _fits(entry: Published, row: Row) -> bool:
    if row.keys.get("activations", "full") != "full":  # all published here is of weights alone
        return False
    same_bits = entry.bits is None or row.bits == entry.bits
    group = entry.group_size
    return same_bits and (group is None or row.keys.get("quant.group_size") == str(group))
