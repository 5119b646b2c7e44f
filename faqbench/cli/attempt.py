"""One attempt at one cell, in this process: run it, or say why not, and leave a record either way."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from faqbench.cli.console import console_progress
from faqbench.cli.fault import told, without_paths
from faqbench.cli.memory import lift_memory_limit
from faqbench.config import Experiment, UserError, run_id
from faqbench.interrupts import must_pass, raise_if_interrupted
from faqbench.records import (
    RunData,
    RunRecord,
    claimed,
    read_record,
    read_run,
    stop_sweep,
)
from faqbench.sources import reusable_record
from faqbench.stages import Progress, StageCache

if TYPE_CHECKING:
    from faqbench.models import ModelHolder
    from faqbench.pipeline.planning import Estimate


def attempt(experiment: Experiment, estimate: Estimate | None = None) -> RunRecord:
    """Run a cell, unless it finished before or another process runs it just now.

    Args:
        experiment: the cell.
        estimate: what a plan said of it.

    Raises:
        UserError: when not even a record can be written.
    """
    from faqbench.tracking import is_awaited, live, tracker

    progress = console_progress()
    name, runs = run_id(experiment), experiment.paths.runs
    done, changed = reusable_record(experiment)
    if changed:
        progress.note(f"{name}: finished before and made again: {changed}")
    if done is not None:
        progress.note(f"{name}: finished before, skipped (rerun=true repeats it)")
        if is_awaited():
            try:
                tracker(experiment.tracking, runs).log(read_run(runs / name))
            except ValueError as error:
                progress.note(f"{name}: not shown again: {error}")
        return done

    def wait(holder: str) -> None:
        progress.note(f"{name}: {holder} is running it; waiting for it")

    with claimed(runs, name, wait) as waited:
        if waited and (record := _record_of(experiment)) is not None:
            return record
        progress.note(f"{name}: running")
        with live(experiment, progress) as watched:
            return _run(experiment, estimate, watched)


def record_failure(experiment: Experiment, error: str) -> RunRecord:
    """Write the record of a cell that failed, and show it as any other.

    Raises:
        UserError: when it cannot be written.
    """
    from faqbench import pipeline

    return _show(experiment, pipeline.write_failure(experiment, error))


def _run(experiment: Experiment, estimate: Estimate | None, progress: Progress) -> RunRecord:
    from faqbench import pipeline

    try:
        with StageCache(max_bytes=experiment.cache.max_bytes, owner=run_id(experiment)) as stages:
            data = pipeline.run(
                experiment,
                cache=stages,
                progress=progress,
                holder=_holder(),
                estimate=estimate,
            )
    except UserError as error:
        raise_if_interrupted()
        told_to_all = without_paths(str(error))
        if told_to_all != str(
            error
        ):  # the record is for others too, the sentence for whoever can mend it
            progress.note(f"{run_id(experiment)}: failed: {error}")
        return record_failure(experiment, told_to_all)
    except BaseException as error:  # a failing cell is a failed record, and its sweep goes on
        if must_pass(error):
            raise
        lift_memory_limit()
        return record_failure(experiment, told(error))
    return _show(experiment, data)


def _show(experiment: Experiment, data: RunData) -> RunRecord:
    """Show a cell where the user tracks runs, and stop its sweep if it failed and is to."""
    from faqbench.tracking import tracker

    group = experiment.tracking.group
    if data.record.status == "failed" and experiment.on_error == "stop" and group is not None:
        stop_sweep(experiment.paths.runs, group)
    tracker(experiment.tracking, experiment.paths.runs).log(data)
    return data.record


def _record_of(experiment: Experiment) -> RunRecord | None:
    try:
        return read_record(experiment.paths.runs / run_id(experiment))
    except ValueError:
        return None


@cache
def _holder() -> ModelHolder:
    """Return the one holder of this process, which keeps a model from cell to cell."""
    from faqbench.models import ModelHolder

    return ModelHolder()
