"""What stands around the numbers: how they were measured, and what papers published.

`published.json` holds one entry per number: the paper's model, metric, bits and group size (null where
our source does not state them), method and value; and where ours would be found: the model's name here,
the tasks or protocols that come nearest, and the name of the metric. It stands beside ours where we
measured the like, and never as ours. The FAQ paper's body is not available to this project; all numbers
come by way of the project's source material.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any

from faqbench import formatting
from faqbench.records import RunRecord
from faqbench.report import facts
from faqbench.report.columns import Column, estimate_cell
from faqbench.report.panels import Panel, Row
from faqbench.tables import Cell, Heading, Table, text_cell

STATISTICS = (
    "Each value stands with its standard error over windows (perplexity, delta method) or items "
    "(accuracy). Differences are paired: per window of the same tokens for perplexity, with a "
    "circular block bootstrap over windows; per item for accuracy, with an exact McNemar test and "
    "a paired bootstrap. With several calibration draws the error is split into the draws', the "
    "items' and a residual part. p-values are corrected by Holm's method over each table; "
    "intervals are 95 % for each comparison by itself. What is not significant is called not "
    "decidable, unless two one-sided tests show it to be within the margin that was stated beforehand. "
    "Flips are the items that one run gets right and the other wrong."
)


def how_measured(panel: Panel) -> Iterator[tuple[str, str]]:
    """Yield (term, description) of what a reader needs to judge or repeat the numbers."""
    runs = [run for row in panel.rows for run in row.runs]
    notes = _values(runs, "model.notes")
    yield "Model", " ".join([panel.model, *(f"({n})" for n in _values(runs, "model.source"))])
    if notes:
        yield "About the model", " ".join(notes)
    for column in panel.of_kind("perplexity"):
        windows = _values(runs, "evaluation.n_windows")
        first = f", at most {windows[0]} windows" if len(windows) == 1 else ""
        yield column.label, f"perplexity over {column.n:,} scored tokens{first}"
    tasks = [f"{column.label} ({column.n:,} items)" for column in panel.of_kind("acc")]
    if tasks:
        shots = "/".join(_values(runs, "evaluation.num_fewshot")) or "unknown"
        bos = "/".join(_values(runs, "evaluation.add_bos")) or "unknown"
        yield "Tasks", f"{', '.join(tasks)}; few-shot examples: {shots}; BOS added: {bos}"
    for note in facts.truncation_notes(runs):
        yield "Truncated", note
    yield from _grid([run for run in runs if not facts.is_baseline(run)])
    yield from _calibration([run for run in runs if facts.is_calibrated(run)])
    yield "Arithmetic", ", ".join(_values(runs, "dtype") + _values(runs, "device")) or "unknown"
    yield from _environment(runs)
    yield "Statistics", STATISTICS


def _grid(runs: list[RunRecord]) -> Iterator[tuple[str, str]]:
    if runs:
        groups = [("per row" if g == "-1" else g) for g in _values(runs, "quant.group_size")]
        kinds = dict.fromkeys(facts.grid_kind(run) for run in runs)
        yield "Grid", f"{', '.join(kinds)}, group size {', '.join(groups)}"


def _calibration(runs: list[RunRecord]) -> Iterator[tuple[str, str]]:
    if not runs:
        return
    windows = _values(runs, "calibration.n_samples"), _values(runs, "calibration.seq_len")
    domains = formatting.listing(_values(runs, "calibration.domain")) or "unknown text"
    scenarios = [s for s in _values(runs, "scenario") if s != "matched"]
    seeds = list(dict.fromkeys(facts.seed(run) for run in runs))
    text = f"{' or '.join(windows[0])} windows of {' or '.join(windows[1])} tokens of {domains}"
    text += f", scenarios {formatting.listing(scenarios)}" if scenarios else ""
    yield "Calibration", f"{text}; seeds {', '.join(seeds)}. RTN and full precision read none."


def _environment(runs: list[RunRecord]) -> Iterator[tuple[str, str]]:
    flat = facts.flatten(runs[0].environment) if runs else {}
    if flat:
        same = all(facts.flatten(run.environment) == flat for run in runs)
        text = ", ".join(f"{key} {value}" for key, value in flat.items())
        yield "Environment", text if same else f"{text}; it differs between runs, see each run"


def _values(runs: Iterable[RunRecord], key: str) -> list[str]:
    found = (facts.config_value(run.config, key) for run in runs)
    return [value for value in dict.fromkeys(found) if value is not None]


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
    if (
        row.keys.get("activations", "full") != "full"
    ):  # all published values here are of weights alone
        return False
    return same_bits and (group is None or row.keys.get("quant.group_size") == str(group))
