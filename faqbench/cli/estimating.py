"""Estimates made before a run and how they turned out, said in a line at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from faqbench.cli.quantities import seconds
from faqbench.config import Experiment, UserError
from faqbench.records import RunRecord, find_runs
from faqbench.stages import StageCache

if TYPE_CHECKING:
    from faqbench.pipeline.planning import Estimate


def estimates_of(experiments: Sequence[Experiment]) -> Mapping[str, Estimate]:
    """Return what a plan says of cells that are about to run in this order, by run id."""
    from faqbench.pipeline.planning import make_plan

    if not experiments:
        return {}
    records, _ = find_runs(experiments[0].paths.runs)
    try:
        with StageCache() as cache:
            plan = make_plan(experiments, records, cache)
    except UserError:
        return {}  # the cell that cannot be planned will say why it cannot run
    if plan.is_blind:
        return {}  # a number that nothing stands behind is no estimate
    return {cell.run_id: cell.estimate() for cell in plan.cells if cell.status != "finished"}


def how_it_turned_out(records: Sequence[RunRecord]) -> str | None:
    """Compare the planned seconds of cells with the actual ones; None when none were planned."""
    from faqbench.pipeline.planning import total_error

    total = total_error(records)
    if total is None:
        return None
    planned, actual = total
    error = (planned - actual) / actual if actual else 0.0
    return f"Cells took {seconds(actual)}; the plan said {seconds(planned)} ({error:+.0%})."
