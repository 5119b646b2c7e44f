"""Run one cell or a sweep: everything that is not a verb.

All cells are composed and validated first; those that finished before are skipped. The others go to the
launcher that the user chose, and each leaves a record, finished or failed: no cell stops its sweep unless
`on_error=stop` asks for it. A sweep ends with a table of what its cells gave, and of what went wrong.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig

from faqbench.cli.attempt import attempt, attempt_in_a_process
from faqbench.cli.composing import (
    Command,
    all_overrides,
    compose_cells,
    composer,
    is_search,
    only_shows,
    parse_flags,
    to_experiment,
)
from faqbench.cli.conclusion import conclude, estimates_of, tell_progress
from faqbench.cli.console import console_progress
from faqbench.cli.launching import (
    Sweep,
    check_launcher,
    check_to_run,
    launch,
    ready_hydra,
    run_search,
    safe_dtypes,
    show,
)
from faqbench.cli.refusals import CONFIG_NAME
from faqbench.cli.workers import own_place
from faqbench.config import Experiment, UserError, run_id
from faqbench.files import explain_os_error, remove_leftovers
from faqbench.interrupts import end_with, raise_if_interrupted, signals_end_it
from faqbench.records import RunRecord, clear_sweep, is_stopped, note_cell, noted_cells, write_sweep
from faqbench.stages import hash_json, tidy
from faqbench.stages.cache import cache_root

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from faqbench.pipeline.planning import Estimate


def run(arguments: list[str]) -> int:
    """Run the cells that a command line describes and return the exit code."""
    flags = parse_flags(arguments)
    if only_shows(flags):
        show(arguments, run_cell)
        return 0
    request = compose_cells(flags)
    check_launcher(request.hydra)
    for note in safe_dtypes(request.experiments):
        console_progress().note(note)
    runs = request.experiments[0].paths.runs
    with tidied(runs):
        match request.kind:
            case "cell":
                first = request.experiments[0]
                check_to_run([first])
                estimates = estimates_of([first])
                with composer():
                    task = partial(run_cell, estimates=estimates)
                    ready_hydra().run(CONFIG_NAME, task, list(request.cells[0].overrides))
                return conclude(first, [run_id(first)], is_sweep=False, planned=estimates)
            case "sweep":
                return _run_sweep(request, all_overrides(flags))
            case "search":
                return _run_search(request, all_overrides(flags))


@contextmanager
def tidied(runs: Path) -> Iterator[None]:
    """Make the folder of runs, and leave nothing half-written there or in the cache.

    Raises:
        UserError: when there cannot be such a folder.
    """
    _make(runs)
    remove_leftovers(runs)
    try:
        yield
    except BaseException:  # a signal among them
        remove_leftovers(runs)
        tidy(cache_root())
        raise


def _make(runs: Path) -> None:
    """Make the folder of runs, and see that what is in it can be seen.

    Raises:
        UserError: when there cannot be one, or it is another user's alone.
    """
    remedy = "set paths.runs to another folder"
    with explain_os_error("use the folder of runs", runs, remedy):
        runs.mkdir(parents=True, exist_ok=True)
        (runs / "record.json").exists()  # raises for a folder that cannot be entered
        next(runs.iterdir(), None)  # and for one that cannot be listed


def run_cell(
    config: DictConfig,
    estimates: Mapping[str, Estimate] | None = None,
    started_by: int | None = None,
    beside: Sequence[Experiment] = (),
) -> float:
    """Run one cell, in whatever process a launcher put it, and return its objective.

    Args:
        config: as Hydra composed it.
        estimates: what a plan said of the cells, by run id.
        started_by: the process of the sweep; a launcher's own process ends with it.
        beside: the cells that this process runs one after another, where one runs them all.

    Returns:
        The first metric, turned so that smaller is better; infinity when the cell failed.

    Raises:
        Interrupted: when a signal asked this process to end, now or before.
    """
    with signals_end_it():  # this may be a launcher's process
        raise_if_interrupted()
        if started_by is not None and os.getppid() == started_by:
            end_with(started_by)
        return _run_composed(config, estimates or {}, beside)


def _run_composed(
    config: DictConfig, estimates: Mapping[str, Estimate], beside: Sequence[Experiment]
) -> float:
    hydra_config = HydraConfig.get()
    _go_to(Path(hydra_config.runtime.cwd))
    experiment = to_experiment(config)
    runs, group = experiment.paths.runs, experiment.tracking.group
    if group is not None and is_search(hydra_config):
        note_cell(runs, group, run_id(experiment))
    if group is not None and experiment.on_error == "stop" and is_stopped(runs, group):
        return float("inf")
    estimate = estimates.get(run_id(experiment))
    with own_place(experiment, hydra_config.launcher):
        if experiment.isolate == "process":
            record = attempt_in_a_process(experiment, estimate)
        else:
            record = attempt(experiment, estimate, beside)
    tell_progress(runs, estimates, record)
    return _objective(record)


def _run_sweep(request: Command, overrides: list[str]) -> int:
    """Run the cells that did not finish before."""
    first = request.experiments[0]
    run_ids = list(dict.fromkeys(map(run_id, request.experiments)))
    name = first.tracking.group or first.report.name or f"sweep-{hash_json(run_ids)[:10]}"
    sweep = Sweep(cells=request.cells, name=name, run_ids=run_ids, run_cell=run_cell, overrides=overrides)
    planned, problems = launch(sweep)
    return conclude(first, run_ids, is_sweep=True, planned=planned, problems=problems)


def _run_search(request: Command, overrides: list[str]) -> int:
    """Let a sweeper choose the cells one after another, by what each of them gave."""
    first = request.experiments[0]
    chosen = first.tracking.group or first.report.name
    name = chosen or f"search-{hash_json(overrides)[:10]}"
    clear_sweep(first.paths.runs, name)
    task = partial(run_cell, started_by=os.getpid())
    if not any(line.startswith("dtype=") for line in overrides):
        overrides = [*overrides, f"dtype={first.dtype}"]
    run_search([*overrides, f"++tracking.group={name}"], task)
    run_ids = noted_cells(first.paths.runs, name)
    write_sweep(first.paths.runs, name, run_ids)
    return conclude(first, run_ids, is_sweep=True)


def _go_to(folder: Path) -> None:
    """Work where the sweep was started, as Ray's workers do not by themselves: paths are relative to it.

    Raises:
        UserError: when this machine does not have that folder.
    """
    try:
        if not folder.samefile(Path.cwd()):
            os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"The sweep was started in {folder}, which {platform.node()} does not have; start it on a "
            "file system that all machines share."
        ) from error


def _objective(record: RunRecord) -> float:
    if record.status == "failed" or not record.metrics or record.metrics[0].value is None:
        return float("inf")
    metric = record.metrics[0]
    assert metric.value is not None
    return -metric.value if metric.higher_is_better else metric.value
