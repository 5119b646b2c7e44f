"""What a report is asked for, and which runs it is about.

These are a sweep's list or all runs, narrowed by patterns and filters.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from faqbench.config import UserError, did_you_mean
from faqbench.config.section import Margin, parse_margin
from faqbench.records import RunRecord, find_runs, read_sweep
from faqbench.report.facts import config_value, stated_margin
from faqbench.report.panels import without_repeats
from faqbench.tables import Table


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """One report.

    Attributes:
        runs: the folder with the run folders.
        reports: the folder below which `<name>/` is written.
        name: the report's folder; also the sweep whose list of runs is used when there is one.
        select: patterns on run ids (`*faq*`) and filters on the config (`quant=awq,faq`, `bits=3`,
            `calibration.n_samples=32`). A run must match one of the patterns and all filters.
        run_ids: exactly these runs; None takes the sweep's list, or all runs.
        baseline: the method, or the run, that others are compared with; None takes AWQ, else RTN.
        title: the page's title; None makes one.
        margin: within which two methods count as equal, as `1% 1pt 0.01nats`; None takes what the runs'
            configurations state.
    """

    runs: Path
    reports: Path
    name: str
    select: tuple[str, ...] = ()
    run_ids: tuple[str, ...] | None = None
    baseline: str | None = None
    title: str | None = None
    margin: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """The files of a written report, (run id, reason) of damaged runs, a sentence on each left out.

    `front` is the page that lists all reports; None where something else has its place.
    Where a published value has one of ours beside it, `published` is the table of these.
    """

    folder: Path
    html: Path
    markdown: Path
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    n_runs: int
    damaged: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    front: Path | None = None
    published: Table | None = None


Finder = Callable[[Path], tuple[list[RunRecord], list[tuple[str, str]]]]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The runs of a report, and those that cannot be in it.

    Attributes:
        finished: records to show.
        failed: records of cells that ended with an error.
        missing: run ids that were asked for and are not on disk.
        damaged: (folder, reason) of records that cannot be read.
        repeated: (run ids, sentence) of finished runs that are one draw, where none of them is taken.
    """

    finished: tuple[RunRecord, ...]
    failed: tuple[RunRecord, ...]
    missing: tuple[str, ...]
    damaged: tuple[tuple[str, str], ...]
    repeated: tuple[tuple[str, str], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing at all to report on."""
        return not (self.finished or self.failed)


def select_runs(request: ReportRequest, find: Finder = find_runs) -> Selection:
    """Read the records that a request asks for.

    Args:
        request: which runs.
        find: reads a folder; `find_heads` where nobody asks for what heads leave out.

    Raises:
        UserError: when `select` matches none of the runs there are, or the sweep's list is damaged.
    """
    records, damaged = find(request.runs)
    asked: Sequence[str] | None = request.run_ids
    if asked is None:
        asked = read_sweep(request.runs, request.name)
    missing: list[str] = []
    if asked is not None:
        by_id = {record.run_id: record for record in records}
        broken = {name for name, _ in damaged}
        missing = [i for i in asked if i not in by_id and i not in broken]
        records = [by_id[i] for i in dict.fromkeys(asked) if i in by_id]
        damaged = [entry for entry in damaged if entry[0] in set(asked)]
    if request.select and records:
        records = _narrow(records, request.select)
        missing = [i for i in missing if _matches_pattern(i, _patterns(request.select))]
    return Selection(
        finished=tuple(r for r in records if r.status == "finished"),
        failed=tuple(r for r in records if r.status != "finished"),
        missing=tuple(dict.fromkeys(missing)),
        damaged=tuple((n, reason.replace(str(request.runs), "runs")) for n, reason in damaged),
    )


def select_draws(request: ReportRequest) -> Selection:
    """Read the records that a request asks for, less those that are one draw twice.

    Which of two such runs is right nobody can tell, so a table or a comparison takes neither; whoever
    lists, copies, sends or removes runs takes them all, with `select_runs`.

    Raises:
        UserError: as `select_runs`.
    """
    selection = select_runs(request)
    finished, repeated = without_repeats(selection.finished)
    return replace(selection, finished=tuple(finished), repeated=tuple(repeated))


def _narrow(records: list[RunRecord], select: Sequence[str]) -> list[RunRecord]:
    filters = [entry.partition("=")[::2] for entry in select if "=" in entry]
    patterns = _patterns(select)
    chosen = [r for r in records if _matches_pattern(r.run_id, patterns)]
    if not chosen:
        raise UserError(_nothing_matches(patterns, [r.run_id for r in records]))
    for key, value in filters:
        kept = [r for r in chosen if _matches_filter(r, key, value)]
        if not kept:
            raise UserError(_no_such_value(key, value, chosen))
        chosen = kept
    return chosen


def _patterns(select: Sequence[str]) -> list[str]:
    return [entry for entry in select if "=" not in entry]


def _matches_pattern(run_id: str, patterns: Sequence[str]) -> bool:
    def matches(pattern: str) -> bool:
        return fnmatchcase(run_id, pattern) if any(c in pattern for c in "*?[") else pattern in run_id

    return not patterns or any(matches(p) for p in patterns)


def _matches_filter(record: RunRecord, key: str, value: str) -> bool:
    actual = config_value(record.config, key)
    return actual is not None and any(
        fnmatchcase(actual.lower(), v.strip().lower()) for v in value.split(",")
    )


def _nothing_matches(patterns: Iterable[str], run_ids: list[str]) -> str:
    quoted = ", ".join(f"'{p}'" for p in patterns)
    bare = " ".join(patterns).strip("*?")
    near = difflib.get_close_matches(bare, run_ids, n=3, cutoff=0.0)
    return f"select {quoted} matches none of {len(run_ids)} runs; the nearest are {', '.join(near)}."


def _no_such_value(key: str, value: str, records: Sequence[RunRecord]) -> str:
    seen = sorted({v for r in records if (v := config_value(r.config, key)) is not None})
    if not seen:
        return f"select '{key}={value}' matches no run: no run's config has a key '{key}'."
    near = difflib.get_close_matches(value, [r.run_id for r in records], n=3, cutoff=0.0)
    return (
        f"select '{key}={value}' matches none of {len(records)} runs; their values of '{key}' are "
        f"{', '.join(seen[:12])}.{did_you_mean(value, seen)} Nearest runs: {', '.join(near)}."
    )


def resolve_margin(request: ReportRequest, records: Sequence[RunRecord]) -> Margin | None:
    """Return the margin of a report: the one asked for, else the one that all runs state.

    Raises:
        UserError: when the one asked for cannot be read.
    """
    if request.margin is None:
        return stated_margin(records)
    try:
        return parse_margin(request.margin)
    except ValueError as error:
        raise UserError(f"{error}.") from error
