"""The verb `plan`: what a run or a sweep would do, reuse and cost, as a table and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.cli.conclusion import shortages
from faqbench.cli.console import print_damaged, print_table
from faqbench.cli.launching import check_launcher, check_unfinished, dtype_notes, in_order
from faqbench.cli.workers import kind_of, n_workers
from faqbench.formatting import count, n_bytes, seconds
from faqbench.report import reproductions
from faqbench.stages import StageCache
from faqbench.tables import Table

if TYPE_CHECKING:
    from faqbench.pipeline.planning import Plan, PlannedCell, PlannedStage


def plan(arguments: list[str]) -> int:
    """Say what a run or a sweep would do, reuse and cost, without loading a model: plan [-m] key=value ….

    The arguments are those of the run itself. Seconds, memory and disk are medians of earlier records of
    the same model on the same hardware; without any they follow from the model's shape and a measurement
    of this machine that takes a second.
    """
    from faqbench.pipeline.planning import earlier_records, make_plan

    request = compose_cells(parse_flags(arguments))
    check_launcher(request.hydra)
    cells = in_order(request.cells)
    check_unfinished([c.experiment for c in cells])
    runs = cells[0].experiment.paths.runs
    records, damaged = earlier_records(runs, {c.experiment.model.name for c in cells})
    print_damaged(damaged)
    with StageCache() as cache:
        plan = make_plan([c.experiment for c in cells], records, cache)
        print_table(Table.of(_cells(plan), "cells, in the order in which they start"))
        print_table(Table.of(_stages(plan.stages), "stages of the cells that are left"))
        launcher = request.hydra.launcher
        print(_summary(plan, kind_of(launcher), n_workers(launcher)))
        needs = reproductions().get(cells[0].experiment.report.name or "")
        if needs is not None:
            print(f"It needs {needs}.")
        for note in (*plan.notes, *shortages(plan, cache.root, n_workers(launcher))):
            print(note)
        for note in dtype_notes([c.experiment for c in cells]):
            print(note)
    return 0


def _cells(plan: Plan) -> list[dict[str, str]]:
    words = {"finished": "finished, skipped", "failed": "failed, again", "new": "new"}
    return [
        {
            "cell": cell.run_id,
            "status": words[cell.status],
            "to compute": "" if cell.status == "finished" else str(cell.n_due),
            "to reuse": "" if cell.status == "finished" else str(cell.n_reused),
            **_cost(cell, is_known=not plan.is_blind),
        }
        for cell in plan.cells
    ]


def _cost(cell: PlannedCell, *, is_known: bool) -> dict[str, str]:
    shown = is_known and cell.status != "finished"
    return {
        "time": seconds(cell.seconds) if shown else "",
        "peak memory": n_bytes(cell.peak_memory_bytes) if shown else "",
    }


def _stages(stages: Sequence[PlannedStage]) -> list[dict[str, str]]:
    """Return a row per kind of stage, its entries counted."""
    rows = []
    for name in dict.fromkeys((s.need.kind, s.need.title) for s in stages):
        alike = [s for s in stages if (s.need.kind, s.need.title) == name]
        due = [s for s in alike if s.need.is_due]
        shares = [s.n_cells for s in alike]
        shared = f"{min(shares)}" if min(shares) == max(shares) else f"{min(shares)}-{max(shares)}"
        rows.append(
            {
                "stage": " ".join(filter(None, name)),
                "there": str(sum(s.need.exists for s in alike)),
                "to compute": str(len(due)),
                "cells each": shared,
                "time": seconds(sum(s.cost.seconds for s in due)) if due else "",
                "disk": n_bytes(sum(s.cost.n_bytes for s in due)) if due else "",
            }
        )
    return rows


def _summary(plan: Plan, kind: str, workers: int) -> str:
    """Say in a sentence or two what is left to run, and what it takes."""
    n = {status: sum(c.status == status for c in plan.cells) for status in ("finished", "failed", "new")}
    parts = [f"{n['new']} new"]
    parts += [f"{n['failed']} failed before and tried again"] if n["failed"] else []
    parts += [f"{n['finished']} finished before and skipped"] if n["finished"] else []
    cells = f"{count(len(plan.cells), 'cell')}: {', '.join(parts)}."
    n_left = n["new"] + n["failed"]
    if n_left == 0:
        return f"{cells} Nothing is left to run."
    if plan.is_blind:
        return (
            f"{cells} What they take is not known: there is "
            "no earlier run, and the model's configuration is not on this machine yet."
        )
    where = f" on {min(workers, n_left)} processes" if kind != "basic" and workers > 1 else ""
    whence = (
        f"from {count(plan.n_records, 'earlier run')}"
        if plan.n_records
        else "from the model's shape and a short measurement of this machine"
    )
    return (
        f"{cells} About "
        f"{seconds(plan.seconds / max(1, min(workers, n_left)))}{where}, "
        f"{n_bytes(plan.peak_memory_bytes)} of memory at the peak of a process and "
        f"{n_bytes(plan.n_bytes)} of disk, {whence}."
    )
