"""List runs, newest last: ls [PATTERN …] [key=value …] columns=… sort=… limit=… runs=….

Words are patterns on run ids, and any other key filters on the configuration, as in
ls '*faq*' bits=3 quant=awq,faq. columns are names of a record's fields (run, status, seconds,
bits_per_weight, …), keys of its configuration (bits, quant.scale, calibration.seed, …) or metrics
(wikitext2-512/perplexity). sort takes one of them, with a minus for the largest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from faqbench.cli.arguments import KeysOfRuns, Number, read_arguments
from faqbench.cli.console import print_damaged, print_table
from faqbench.config import Experiment, UserError, did_you_mean
from faqbench.formatting import n_bytes
from faqbench.records import RunRecord, find_heads
from faqbench.report import ReportRequest
from faqbench.report.facts import config_value
from faqbench.report.selection import select_runs
from faqbench.tables import Table

_DEFAULT = ("run", "status", "started", "seconds", "result")
_FIELDS = ("run", "status", "started", "seconds", "result", "bits_per_weight", "checkpoint_bytes",
           "peak_memory_bytes", "error", "gates")  # fmt: skip
_BYTES = ("checkpoint_bytes", "peak_memory_bytes")


class ListKeys(KeysOfRuns):
    """How runs are shown.

    Attributes:
        columns: separated by commas.
        sort: the column that decides their order; a minus before it turns it round.
        limit: how many of the last ones are shown, or of the first ones with a minus before `sort`.
    """

    columns: str = ""
    sort: str = "started"
    limit: Number | None = None


def run(arguments: list[str]) -> int:
    """Print a table of records."""
    keys, select = _split(arguments)
    request = ReportRequest(runs=keys.runs, reports=Path("reports"), name="", select=select)
    selection = select_runs(request, find_heads)
    records = [*selection.finished, *selection.failed]
    columns = [c for c in keys.columns.split(",") if c] or list(_DEFAULT)
    order = keys.sort
    for column in (*columns, order.removeprefix("-")):
        _check(column, records)
    records.sort(key=lambda r: _sortable(_value(r, order.removeprefix("-"))))
    if order.startswith("-"):
        records.reverse()
    if keys.limit is not None:
        n = int(keys.limit)
        records = records[:n] if order.startswith("-") else records[max(0, len(records) - n) :]
    rows = [{column: _text(_value(r, column), column) for column in columns} for r in records]
    print_table(Table.of(rows))
    print_damaged(selection.damaged)
    if selection.is_empty and not selection.damaged:
        print("No runs yet; `python -m faqbench experiment=quickstart` makes some.")
    return 0


def _split(arguments: Sequence[str]) -> tuple[ListKeys, tuple[str, ...]]:
    """Separate our own keys from what selects runs."""
    typed, select = [], []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if equals and key in ListKeys.model_fields:
            typed.append(argument)
            continue
        if equals and key.split(".")[0] not in Experiment.model_fields:
            allowed = ", ".join(ListKeys.model_fields)
            hint = did_you_mean(key, [*ListKeys.model_fields, *Experiment.model_fields])
            raise UserError(
                f"ls: unknown key {key}; it is one of {allowed}, or a key of the configuration.{hint}"
            )
        select.append(argument)
    return read_arguments("ls", typed, ListKeys)[1], tuple(select)


def _check(column: str, records: Sequence[RunRecord]) -> None:
    if column in _FIELDS or not records:
        return
    if "/" in column:
        allowed = sorted({f"{m.task}/{m.name}" for r in records for m in r.metrics})
        if column in allowed:
            return
    else:
        allowed = [*_FIELDS, *records[0].config]
        if any(config_value(r.config, column) is not None for r in records):
            return
    raise UserError(
        f"ls: no run has a column {column}; known: {', '.join(allowed)}.{did_you_mean(column, allowed)}"
    )


def _value(record: RunRecord, column: str) -> object:
    match column:
        case "run":
            return record.run_id
        case "result":
            first = record.metrics[0] if record.metrics else None
            has_value = first is not None and first.value is not None
            return f"{first.task} {first.name} {first.value:.4g}" if first and has_value else None
        case "gates":
            failed = [g.name for g in record.gates if not g.passed]
            return f"failed: {', '.join(failed)}" if failed else f"{len(record.gates)} passed"
        case "error":
            return record.error_line if record.error else None
    if column in _FIELDS:
        return getattr(record, column)
    if "/" in column:
        metric = record.metric(*column.split("/", 1))
        return None if metric is None else metric.value
    return config_value(record.config, column)


def _sortable(value: object) -> tuple[int, float, str]:
    """Order numbers by size, then texts; what is missing comes first."""
    if value is None:
        return 0, 0.0, ""
    try:
        return 1, float(str(value)), ""
    except ValueError:
        return 2, 0.0, str(value)


def _text(value: object, column: str) -> str:
    if value is None:
        return ""
    if column in _BYTES:
        assert isinstance(value, int)
        return n_bytes(value)
    if column == "seconds":
        assert isinstance(value, float | int)
        return f"{value:.0f}"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
