"""How a sweep or a cell ends: the table of results, the failures, the report, the exit code."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from faqbench.cli.console import print_table
from faqbench.cli.estimating import how_it_turned_out
from faqbench.config.experiment import Experiment
from faqbench.records import RunRecord, read_record
from faqbench.report import (
    ReportRequest,
    summary_table,
    truncation_notes,
    without_repeats,
    write_report,
)
from faqbench.tables import Table


def conclude(
    experiment: Experiment,
    run_ids: Sequence[str],
    *,
    is_sweep: bool,
    planned: Collection[str] = (),
    problems: Sequence[str] = (),
) -> int:
    """Show what the cells gave, write the report that was asked for, and choose the exit code.

    Args:
        experiment: any cell, for the folders and the report.
        run_ids: of all cells.
        is_sweep: whether there may be several.
        planned: run ids of the cells that were not skipped, whose estimates are compared.
        problems: why cells left no record, one sentence each.

    Returns:
        0 when all cells finished; 1 when one failed or was not run; 2 for what the user can mend.
    """
    runs = experiment.paths.runs
    records, missing = _read(runs, run_ids)
    failed = [r for r in records if r.status == "failed"]
    finished, repeated = without_repeats([r for r in records if r.status == "finished"])
    print_table(summary_table(finished))
    for note in truncation_notes(finished):
        print(f"Note: {note}")
    for names, sentence in repeated:
        print(f"faqbench: {names} {sentence}", file=sys.stderr)
    for record in records:
        for gate in record.gates:
            if not gate.passed:
                print(f"{record.run_id}: gate {gate.name} failed: {gate.detail}", file=sys.stderr)
    if experiment.report.name is None and not is_sweep and records and not failed:
        print(f"Record: {runs / records[0].run_id}")
    ran = [r for r in records if r.run_id in planned]
    if ran and (line := how_it_turned_out(ran)) is not None:
        print(line)
    for problem in dict.fromkeys(problems):
        print(f"faqbench: {problem}", file=sys.stderr)
    if is_sweep:
        rows = [{"failed cell": r.run_id, "error": r.error_line} for r in failed]
        rows += [{"failed cell": name, "error": "not run"} for name in missing]
        print_table(Table.of(rows))
        code = 2 if problems else int(bool(rows))
    else:
        for record in failed:
            print(f"faqbench: {record.error}", file=sys.stderr)
        code = _code_of_a_cell(failed, missing)
    if experiment.report.name is not None and records:  # last: whatever it raises hides nothing
        _write_report(experiment, run_ids)
    return code


def _read(runs: Path, run_ids: Sequence[str]) -> tuple[list[RunRecord], list[str]]:
    records, missing = [], []
    for run_id in run_ids:
        try:
            records.append(read_record(runs / run_id))
        except ValueError:
            missing.append(run_id)
    return records, missing


def _write_report(experiment: Experiment, run_ids: Sequence[str]) -> None:
    from faqbench.tracking import tracker

    assert experiment.report.name is not None
    request = ReportRequest(
        runs=experiment.paths.runs,
        reports=experiment.paths.reports,
        name=experiment.report.name,
        run_ids=tuple(run_ids),
        title=experiment.report.title,
    )
    paths = write_report(request)
    if paths.published is not None:
        print_table(paths.published)
    print(f"Report: {paths.html}")
    tracker(experiment.tracking, experiment.paths.runs).show_report(paths.folder)


def _code_of_a_cell(failed: Sequence[RunRecord], missing: Sequence[str]) -> int:
    """A traceback is ours to mend, a sentence the user's."""
    if missing:
        return 2
    return (1 if "\n" in (failed[0].error or "") else 2) if failed else 0
