"""A sweep over cells that are known beforehand: skip, order, launch, and make sure of a record for each.

When a launcher's pool of processes breaks, as joblib's does when the system kills one of them, the cells
that are left are launched once more, each in a process of its own: whichever kills its process again has
failed, and the others finish.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from faqbench.cli.attempt import record_failure
from faqbench.cli.checking import check_unfinished
from faqbench.cli.composing import Cell, Request
from faqbench.cli.conclusion import conclude
from faqbench.cli.console import console_progress
from faqbench.cli.estimating import estimates_of
from faqbench.cli.launching import Task, in_order, launch
from faqbench.cli.workers import kind_of, n_workers
from faqbench.config import UserError, run_id
from faqbench.interrupts import must_pass
from faqbench.records import (
    clear_sweep,
    drop_claim,
    find_dead_claims,
    is_stopped,
    write_sweep,
)
from faqbench.sources import reusable_record
from faqbench.stages import hash_json

_ENDS_WITH_ITS_JOBS = ("joblib", "ray", "submitit_local")


def run_sweep(request: Request, overrides: list[str], task: Task) -> int:
    """Run the cells of a sweep that did not finish before, and return the exit code.

    Raises:
        UserError: for records that must not be replaced, and folders that cannot be written.
    """
    run_ids = list(dict.fromkeys(run_id(c.experiment) for c in request.cells))
    first = request.cells[0].experiment
    name = first.tracking.group or first.report.name or f"sweep-{hash_json(run_ids)[:10]}"
    planned, problems = launch_cells(request, overrides, task, name=name, run_ids=run_ids)
    return conclude(first, run_ids, is_sweep=True, planned=planned, problems=problems)


def launch_cells(
    request: Request, overrides: list[str], task: Task, *, name: str, run_ids: Sequence[str]
) -> tuple[Collection[str], list[str]]:
    """Run the cells of a request that did not finish before, each until it has a record.

    Args:
        request: with at least one cell.
        overrides: of the command line, which choose the launcher.
        task: run for each cell.
        name: of the sweep.
        run_ids: of all its cells, of which these may be some.

    Returns:
        The run ids that were planned, and why cells left no record, one sentence each.

    Raises:
        UserError: for records that must not be replaced, and folders that cannot be written.
    """
    cells = list({run_id(c.experiment): c for c in request.cells}.values())
    runs = cells[0].experiment.paths.runs
    left = in_order(_unfinished(cells))
    check_unfinished([c.experiment for c in left])
    write_sweep(runs, name, run_ids)
    if left:
        clear_sweep(runs, name)
    can_launch_again = kind_of(request.hydra.launcher) in _ENDS_WITH_ITS_JOBS
    estimates = estimates_of([c.experiment for c in left], n_workers(request.hydra.launcher))
    planned = partial(task, estimates=estimates, started_by=os.getpid())
    problems = _launch_all(left, overrides, name, planned, can_launch_again=can_launch_again)
    return estimates, problems


def _unfinished(cells: Sequence[Cell]) -> list[Cell]:
    progress = console_progress()
    left, mistakes = [], []
    for cell in cells:
        try:
            done, _ = reusable_record(cell.experiment)  # the attempt says why it is made again
        except UserError as error:
            mistakes.append(str(error))
            continue
        if done is None:
            left.append(cell)
        else:
            progress.note(f"{done.run_id}: finished before, skipped (rerun=true repeats it)")
    if mistakes:
        raise UserError("\n  ".join(mistakes))
    return left


def _launch_all(
    left: list[Cell], overrides: list[str], name: str, task: Task, *, can_launch_again: bool
) -> list[str]:
    """Launch cells until each has a record, and return why those have none that do not."""
    extra = [f"++tracking.group={name}"]
    problems: list[str] = []
    runs = left[0].experiment.paths.runs if left else Path()
    while left:
        stamps = {run_id(c.experiment): _stamp(c) for c in left}
        broken: BaseException | None = None
        try:
            raised = launch(left, overrides, extra, task)
            problems += [_sentence(error) for error in raised if error is not None]
        except BaseException as error:  # whatever a launcher raises when its pool breaks
            if must_pass(error):
                raise
            broken = error
        if broken is None or is_stopped(runs, name):
            break
        left = [c for c in left if _stamp(c) == stamps[run_id(c.experiment)]]
        killed = set(find_dead_claims(runs)) & {run_id(c.experiment) for c in left}
        for claim in killed:
            drop_claim(runs, claim)
        console_progress().note(f"The launcher's processes broke: {_sentence(broken)}")
        if not can_launch_again:
            problems.append(_sentence(broken))
            break
        if "isolate=process" in extra:
            left = [c for c in left if run_id(c.experiment) not in killed or _fail(c)]
            if not killed:
                problems.append(_sentence(broken))
                break
        else:
            extra.append("isolate=process")
    return problems


def _fail(cell: Cell) -> bool:
    """Record that a cell's process was killed; never true."""
    record_failure(cell.experiment, "The process that ran the cell was killed.")
    return False


def _stamp(cell: Cell) -> int | None:
    """Return when the cell's record was written, in nanoseconds; None without a record."""
    path = cell.experiment.paths.runs / run_id(cell.experiment) / "record.json"
    return path.stat().st_mtime_ns if path.is_file() else None


def _sentence(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
