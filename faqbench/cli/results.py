"""Verbs that read runs: ls, show, compare, report."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from faqbench.cli.arguments import KeysOfRuns, KeysOfSelection, Number, read_arguments
from faqbench.cli.console import print_damaged, print_table, print_text
from faqbench.config import Experiment, UserError, did_you_mean
from faqbench.foreign import is_name
from faqbench.formatting import n_bytes, seconds
from faqbench.records import RunRecord, find_heads, read_record, read_sweep, run_folders, sweep_names
from faqbench.report import (
    ReportRequest,
    pair_runs,
    pair_tables,
    truncation_notes,
    write_pair,
    write_report,
)
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


def ls(arguments: list[str]) -> int:
    """List runs, newest last: ls [PATTERN …] [key=value …] columns=… sort=… limit=… runs=….

    Words are patterns on run ids, and any other key filters on the configuration, as in
    ls '*faq*' bits=3 quant=awq,faq. columns are names of a record's fields (run, status, seconds,
    bits_per_weight, …), keys of its configuration (bits, quant.scale, calibration.seed, …) or metrics
    (wikitext2-512/perplexity). sort takes one of them, with a minus for the largest first.
    """
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


def show(arguments: list[str]) -> int:
    """Show one run, its metrics, gates, stages and warnings: show RUN runs=…."""
    words, keys = read_arguments("show", arguments, KeysOfRuns, n_words=1)
    if not words:
        raise UserError("show needs the name of a run; `faqbench ls` lists them.")
    record = find_record(keys.runs, words[0])
    print(f"{record.run_id}: {record.status}, started {record.started}, {seconds(record.seconds)}")
    if record.error:
        print(record.error)
    print_table(
        Table.of(
            [
                {
                    "task": m.task,
                    "metric": m.name,
                    "value": "" if m.value is None else f"{m.value:.5g}",
                    "stderr": "" if m.stderr is None else f"{m.stderr:.2g}",
                    "n": str(m.n),
                }
                for m in record.metrics
            ]
        )
    )
    print_table(
        Table.of(
            [
                {"stage": name, "time": seconds(s.seconds), "cached": "yes" if s.cached else ""}
                for name, s in record.stages.items()
            ]
        )
    )
    print_table(
        Table.of(
            [
                {"gate": g.name, "passed": "yes" if g.passed else "NO", "detail": g.detail}
                for g in record.gates
            ]
        )
    )
    if (plan := record.extra.get("plan")) is not None:
        print(_plan(plan))
    for text in (*truncation_notes([record]), *record.warnings, *record.skipped_scales):
        print(f"note: {text}")
    return 0


def _plan(plan: Mapping[str, Mapping[str, float]]) -> str:
    planned, actual = plan["estimate"], plan["actual"]
    return (
        f"planned: {seconds(planned['seconds'])}, {n_bytes(planned['peak_memory_bytes'])} of memory, "
        f"{n_bytes(planned['n_bytes'])} of cache; it took {seconds(actual['seconds'])}, "
        f"{n_bytes(actual['peak_memory_bytes'])}, {n_bytes(actual['n_bytes'])}"
    )


def find_record(runs: Path, name: str) -> RunRecord:
    """Return the record of the run with this name, or with the only name that begins so.

    Raises:
        UserError: when there is none, or several, or it cannot be read.
    """
    folder = find_name(runs, name)
    try:
        return read_record(runs / folder)
    except ValueError as error:
        raise UserError(f"Run {folder} cannot be shown: {error}.") from error


def find_name(runs: Path, name: str) -> str:
    """Return the name of the run that is called so, or of the only one that begins so.

    Raises:
        UserError: when there is none, or several.
    """
    names = [folder.name for folder in run_folders(runs) if is_name(folder.name)]
    matches = [n for n in names if n == name] or [n for n in names if n.startswith(name)]
    if len(matches) != 1:
        what = f"{len(matches)} runs begin with" if matches else "There is no run"
        raise UserError(f"{what} '{name}' in {runs}.{did_you_mean(name, names)}")
    return matches[0]


_LONGEST_NAME = 100


class CompareKeys(KeysOfRuns):
    """Where runs are, and where the page goes.

    Attributes:
        reports: the folder of reports; the page is compare/<A>-<B>.html there.
        html: the page's file, or none.
    """

    reports: Path = Path("reports")
    html: str | None = None


def compare(arguments: list[str]) -> int:
    """Compare two runs: keys that differ, differences with intervals, flipped items, where errors grow."""
    words, keys = read_arguments("compare", arguments, CompareKeys, n_words=2)
    if len(words) < 2:
        raise UserError("compare needs the names of two runs; `faqbench ls` lists them.")
    runs = keys.runs
    a, b = (find_record(runs, word) for word in words)
    for record in (a, b):
        if record.status != "finished":
            raise UserError(f"{record.run_id} did not finish, so there is nothing to compare.")
    pair = pair_runs(runs, a, b)
    print(f"A: {a.run_id}\nB: {b.run_id}\n")
    print_text(f"{pair.verdict}\n")
    for run_id, reason in pair.damaged:
        print(f"damaged: {run_id}: {reason}")
    for table in pair_tables(pair):
        print_table(table)
    if keys.html != "none":
        default = keys.reports / "compare" / _name(a.run_id, b.run_id)
        target = Path(keys.html) if keys.html is not None else default
        place = "html to a file" if keys.html is not None else "reports to a folder"
        write_pair(pair, runs, target, f"set {place} that can be written")
        print(f"Page: {target}")
    return 0


def _name(a: str, b: str) -> str:
    name = f"{a}--{b}"
    if len(name) <= 2 * _LONGEST_NAME:
        return f"{name}.html"
    digest = hashlib.sha256(name.encode()).hexdigest()[:10]
    return f"{a[:_LONGEST_NAME]}--{b[: _LONGEST_NAME - 12]}-{digest}.html"


class ReportKeys(KeysOfSelection):
    """What a report shows, and where it goes; where `runs` is not given, runs/<name> comes first.

    Attributes:
        name: the report's folder below reports, and the sweep it shows.
        baseline: the method or run that others are compared with.
        title: the page's title.
        margin: differences within it count as none, as in '1% 1pt 0.01nats'; else what the runs state.
        reports: the folder of reports.
    """

    name: str = "all"
    baseline: str | None = None
    title: str | None = None
    margin: str | None = None
    reports: Path = Path("reports")


def report(arguments: list[str]) -> int:
    """Rebuild a report from runs/ alone: name=… select=… baseline=… title=… runs=… reports=…."""
    _, keys = read_arguments("report", arguments, ReportKeys)
    runs = _runs(keys)
    keys.check_runs()
    packed = sorted(path.parent.name for path in runs.glob("[!._]*/_pack"))
    if runs == keys.runs and not keys.select and (said := misspelt_sweep(runs, keys.name, packed)):
        raise UserError(f"{said} A report over all runs takes a name that is unlike theirs, or none.")
    paths = write_report(
        ReportRequest(
            runs=runs,
            reports=keys.reports,
            name=keys.name,
            select=keys.select,
            baseline=keys.baseline,
            title=keys.title,
            margin=keys.margin,
        )
    )
    print_damaged(paths.damaged)
    if paths.published is not None:
        print_table(paths.published)
    print(f"Report over {paths.n_runs} runs: {paths.html}")
    if paths.front is None:
        print(f"{paths.folder.parent}/index.html is no list of faqbench's reports, so it stays as it is.")
    for sentence in paths.left_out:
        print(f"faqbench: {sentence}", file=sys.stderr)
    return int(bool(paths.left_out))


def misspelt_sweep(runs: Path, name: str, others: Iterable[str] = ()) -> str | None:
    """Say which sweep, or other name, a name may mean; None for a sweep, and for one unlike all of them."""
    if read_sweep(runs, name) is not None:
        return None
    near = did_you_mean(name, [*sweep_names(runs), *others])
    return f"There is no sweep '{name}' in {runs}.{near}" if near else None


def _runs(keys: ReportKeys) -> Path:
    """Return the folder of runs: the one that is asked for, or the one that has the report's name."""
    is_given, named = "runs" in keys.model_fields_set, keys.runs / keys.name
    return named if not is_given and is_name(keys.name) and run_folders(named) else keys.runs
