"""Handing cells to Hydra's launchers, in our order.

Hydra's own sweeper launches cells in the order of the command line, those that finished before too. Here
the cells that are left go to the launcher that the user chose, those that share a model and a calibration
set one after another, so that a process loads a model once and finds its statistics made. What is handed
over is what Hydra's sweeper hands over: lists of overrides, from which the launcher composes each cell
again in its own process.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from faqbench.cli.composing import (
    VERSION_BASE,
    Cell,
    accept_launchers_of_ours,
    composer,
    conf_dir,
)
from faqbench.cli.refusals import CONFIG_NAME
from faqbench.cli.workers import kind_of
from faqbench.config import Experiment, UserError
from faqbench.config.identity import calibration_identity
from faqbench.stages import hash_json

Task = Callable[..., float]  # of a composed configuration
_EXTRAS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}


accept_launchers_of_ours()  # workers compose before any code of ours runs in them


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with those together that share a model, and among these a calibration set.

    Groups and the cells of a group keep the order in which they come first.
    """
    models: dict[str, int] = {}
    sets: dict[str, int] = {}

    def place(cell: Cell) -> tuple[int, int]:
        model, calibration = _shared(cell.experiment)
        return models.setdefault(model, len(models)), sets.setdefault(calibration, len(sets))

    return sorted(cells, key=place)  # stable


def launch(cells: Sequence[Cell], overrides: list[str], extra: list[str], task: Task) -> list[Any]:
    """Run cells with the launcher that the overrides choose.

    Args:
        cells: in the order in which they start.
        overrides: of the whole command line, the launcher's own among them.
        extra: overrides that every cell gets.
        task: run for each cell, in whatever process.

    Returns:
        What the task raised, cell by cell; None for one that returned.

    Raises:
        Exception: what the launcher raised, when a process of its own broke.
    """
    with composer():
        made = _hydra()
        config = made.compose_config(CONFIG_NAME, overrides, RunMode.MULTIRUN, from_shell=False)
        _write_multirun(config)
        callbacks: Any = UsersCallbacks(config)
        context = HydraContext(config_loader=made.config_loader, callbacks=callbacks)
        callbacks.on_multirun_start(config=config, config_name=CONFIG_NAME)
        if kind_of(config.hydra.launcher) == "ray":
            _join_ray(config.hydra.launcher.ray.init)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task, config=config
        )
        size = config.hydra.sweeper.get("max_batch_size") or len(cells)
        returns: list[JobReturn] = []
        for start in range(0, len(cells), size):
            jobs = [[*cell.overrides, *extra] for cell in cells[start : start + size]]
            returns += launcher.launch(jobs, initial_job_idx=start)
        callbacks.on_multirun_end(config=config, config_name=CONFIG_NAME)
    return [r._return_value if r.status == JobStatus.FAILED else None for r in returns]


class UsersCallbacks(Callback):
    """Tells all of `hydra.callbacks` what happens; one that fails is said, and ends nothing."""

    def __init__(self, config: DictConfig) -> None:
        """Make the callbacks that a configuration names."""
        self._callbacks = [instantiate(own) for own in (config.hydra.callbacks or {}).values()]

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell them before the first job."""
        self._tell("on_multirun_start", config=config, **kwargs)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell them after the last job."""
        self._tell("on_multirun_end", config=config, **kwargs)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell them before a job, in its process."""
        self._tell("on_job_start", config=config, **kwargs)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Tell them after a job, in its process."""
        self._tell("on_job_end", config=config, job_return=job_return, **kwargs)

    def _tell(self, event: str, **kwargs: Any) -> None:
        """Tell all of them, the last one first of what ends, as Hydra does."""
        for callback in self._callbacks[:: -1 if event.endswith("_end") else 1]:
            try:
                getattr(callback, event)(**kwargs)
            except Exception as error:  # noqa: BLE001 - the user's own code
                name, kind = type(callback).__name__, type(error).__name__
                warnings.warn(f"Callback {name}.{event} raised {kind}: {error}", stacklevel=2)


def check_launcher(config: DictConfig) -> None:
    """Refuse a launcher whose extra is not installed.

    Raises:
        UserError: with the command that installs it.
    """
    module = str(config.launcher.get("_target_", "not.installed")).rpartition(".")[0]
    name = config.runtime.choices.get("hydra/launcher")
    try:
        known = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        known = False
    if not known:
        extra = _EXTRAS.get(name)
        remedy = f"pip install 'faqbench[{extra}]'" if extra else f"install {module.split('.')[1]}"
        raise UserError(f"hydra/launcher={name} is not installed; {remedy}.")


def run_one(overrides: Sequence[str], task: Task) -> None:
    """Run a single cell in this process; what the task raises is raised."""
    with composer():
        _hydra().run(CONFIG_NAME, task, list(overrides))


def run_search(overrides: list[str], task: Task) -> None:
    """Let a sweeper of the user's choice run cells, each chosen by what earlier ones gave."""
    with composer():
        _hydra().multirun(CONFIG_NAME, task, overrides)


def show(arguments: Sequence[str], task: Task) -> None:
    """Let Hydra show what its own flags ask for."""
    decorate = hydra.main(
        config_path=str(conf_dir().absolute()), config_name=CONFIG_NAME, version_base=VERSION_BASE
    )
    before = sys.argv
    sys.argv = ["faqbench", *arguments]
    try:
        decorate(task)()
    finally:
        sys.argv = before


def _hydra() -> Any:
    made = GlobalHydra.instance().hydra
    assert made is not None
    return made


def _join_ray(settings: DictConfig) -> None:
    """Start or join a Ray cluster before the plugin does.

    The plugin (1.2.2) would pass the size of an object store to a cluster that it joins, too, and Ray
    refuses that.
    """
    import ray

    if not ray.is_initialized():
        ray.init(**{str(key): value for key, value in settings.items()})


def _shared(experiment: Experiment) -> tuple[str, str]:
    model = experiment.model.model_dump(mode="json")
    calibration = calibration_identity(experiment) if experiment.needs_calibration else None
    return hash_json([model, experiment.calibration.dtype, experiment.device]), hash_json(
        calibration
    )


def _write_multirun(config: DictConfig) -> None:
    """Keep what was asked for where Hydra's users look for it."""
    folder = Path(str(config.hydra.sweep.dir))
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "multirun.yaml")
