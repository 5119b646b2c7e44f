"""How a sweep goes about its cells: a `Sweeper`, in the namespace in which Hydra looks for plug-ins.

Hydra's own sweeper launches cells in the order of the command line, those that finished before too. This
one skips, orders, launches, and makes sure of a record for each. When a launcher's pool of processes
breaks, as joblib's does when the system kills one of them, the cells that are left are launched once more,
each in a process of its own: whichever kills its process again has failed, and the others finish.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, run_job
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from faqbench.cli.attempt import record_failure, record_stamp
from faqbench.cli.composing import Cell
from faqbench.cli.conclusion import estimates_of
from faqbench.cli.console import console_progress
from faqbench.cli.launching import Sweep, check_to_run, in_order, sentence, why_no_record
from faqbench.cli.workers import kind_of, n_workers
from faqbench.config import UserError, run_id
from faqbench.interrupts import must_pass
from faqbench.records import clear_sweep, drop_dead_claim, find_dead_claims, is_stopped, write_sweep
from faqbench.sources import reusable_record

if TYPE_CHECKING:
    from faqbench.pipeline.planning import Estimate

_ENDS_WITH_ITS_JOBS = ("joblib", "ray", "submitit_local")


class CellSweeper(Sweeper):
    """Runs the cells of a `Sweep` that did not finish before, each until it has a record."""

    def __init__(self, params: Mapping[str, str] | None, max_batch_size: int | None) -> None:
        """Take what `conf/hydra/sweeper/cells.yaml` lists; `params` are in the sweep's cells already."""
        self._batch_size = max_batch_size

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """See `Sweeper.setup`; the task is a `Sweep`, which brings its cells along."""
        assert isinstance(task_function, Sweep)
        self._context, self._sweep, self._config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> tuple[Mapping[str, Estimate], list[str]]:
        """Run the cells.

        Returns:
            What was planned of each cell that was not skipped, by run id, and why cells left no record, one
            sentence each.

        Raises:
            UserError: for records that must not be replaced, and folders that cannot be written.
        """
        sweep, launcher = self._sweep, self._config.hydra.launcher
        left = in_order(_unfinished(sweep.cells))
        check_to_run([c.experiment for c in left])
        write_sweep(sweep.runs, sweep.name, sweep.run_ids)
        if not left:
            return {}, []
        clear_sweep(sweep.runs, sweep.name)
        self._write_multirun()
        estimates = estimates_of([c.experiment for c in left], n_workers(launcher))
        if kind_of(launcher) == "ray":
            _join_ray(launcher.ray.init)
        task = partial(sweep.run_cell, estimates=estimates, started_by=os.getpid())
        if kind_of(launcher) == "basic":  # this process runs them, one after another
            task = partial(task, beside=tuple(c.experiment for c in left))
        self._task = partial(why_no_record, task=task)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=self._task, config=self._config
        )
        return estimates, self._launch_all(left)

    def _launch_all(self, left: list[Cell]) -> list[str]:
        """Launch cells until each has a record, and return why those have none that do not."""
        runs, name = self._sweep.runs, self._sweep.name
        extra = [f"++tracking.group={name}"]
        problems: list[str] = []
        while left:
            stamps = {run_id(c.experiment): record_stamp(c.experiment) for c in left}
            broken: BaseException | None = None
            try:
                problems += self._launch(left, extra)
            except BaseException as error:  # whatever a launcher raises when its pool breaks
                if must_pass(error):
                    raise
                broken = error
            if broken is None or is_stopped(runs, name):
                break
            left = [c for c in left if record_stamp(c.experiment) == stamps[run_id(c.experiment)]]
            killed = set(find_dead_claims(runs)) & {run_id(c.experiment) for c in left}
            for claim in killed:
                drop_dead_claim(runs, claim)
            console_progress().note(f"The launcher's processes broke: {sentence(broken)}")
            is_isolated = "isolate=process" in extra
            if kind_of(self._config.hydra.launcher) not in _ENDS_WITH_ITS_JOBS or (
                is_isolated and not killed
            ):
                return [*problems, sentence(broken)]
            if is_isolated:
                left = [c for c in left if run_id(c.experiment) not in killed or _fail(c)]
            else:
                extra.append("isolate=process")
        return problems

    def _launch(self, cells: Sequence[Cell], extra: list[str]) -> list[str]:
        """Hand cells to the launcher, and return why cells left no record.

        Raises:
            Exception: what the launcher raised, when a process of its own broke.
        """
        jobs, size = [[*cell.overrides, *extra] for cell in cells], self._batch_size or len(cells)
        if self._run_as_composed(cells):
            made = (self._run(*job) for job in enumerate(zip(cells, jobs, strict=True)))
        else:
            made = (
                job
                for start in range(0, len(jobs), size)
                for job in self._launcher.launch(jobs[start : start + size], initial_job_idx=start)
            )
        return [job.return_value for job in made if job.return_value is not None]

    def _run_as_composed(self, cells: Sequence[Cell]) -> bool:
        """Say whether this process runs the cells, and nobody asks what Hydra knows of each alone."""
        config = self._config.hydra
        is_basic = str(config.launcher["_target_"]).rpartition(".")[2] == "BasicLauncher"
        are_plain = not any("${" in cell.experiment.model_dump_json() for cell in cells)
        return is_basic and are_plain and config.sweep.subdir == "." and not config.callbacks

    def _run(self, number: int, job: tuple[Cell, list[str]]) -> JobReturn:
        """Run a cell as it was composed and checked, which Hydra's launcher would do again for each."""
        cell, overrides = job
        config = OmegaConf.masked_copy(self._config, ["hydra"])
        OmegaConf.set_struct(config, False)
        config.merge_with(cell.experiment.model_dump(mode="json"))
        config.tracking.group = self._sweep.name
        config.hydra.overrides.task = _of_task(overrides)
        config.hydra.job.id = config.hydra.job.num = number
        return run_job(
            hydra_context=self._context,
            task_function=self._task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def _write_multirun(self) -> None:
        """Keep what was asked for where Hydra's users look for it."""
        OmegaConf.update(self._config, "hydra.overrides.task", _of_task(self._sweep.overrides))
        folder = Path(str(self._config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._config, folder / "multirun.yaml")


def _of_task(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that are not of Hydra's own configuration."""
    return [o for o in overrides if not o.lstrip("+~").startswith("hydra")]


def _unfinished(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that have no record to reuse, each once, and say which are skipped."""
    progress = console_progress()
    left, mistakes = [], []
    for cell in {run_id(c.experiment): c for c in cells}.values():
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


def _fail(cell: Cell) -> bool:
    """Record that a cell's process was killed; never true."""
    record_failure(cell.experiment, "The process that ran the cell was killed.")
    return False


def _join_ray(settings: DictConfig) -> None:
    """Start or join a Ray cluster before the plugin does.

    The plugin (1.2.2) would pass the size of an object store to a cluster that it joins, too, and Ray
    refuses that.
    """
    import ray

    if not ray.is_initialized():
        ray.init(**{str(key): value for key, value in settings.items()})
