"""Handing cells to Hydra: the known ones of a sweep, or those that a search chooses on its way.

What a launcher gets is what Hydra's own sweeper would give it: lists of overrides, from which it composes
each cell again in its own process; only what this process runs itself is run as it was composed here. How a
sweep goes about its cells is told in `plugins/hydra_plugins/faqbench_sweeper.py`. Models and dtypes are
checked, and told of, before the first cell starts.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from faqbench.cli.composing import VERSION_BASE, Cell, composer, first_choices
from faqbench.cli.refusals import CONFIG_NAME
from faqbench.config import Experiment, UserError
from faqbench.config.identity import calibration_identity
from faqbench.config.section import DType, conf_dir
from faqbench.records import finished_record
from faqbench.stages import hash_json

if TYPE_CHECKING:
    from faqbench.pipeline.planning import Estimate


Task = Callable[..., float]  # of a composed configuration
_EXTRAS = {"joblib": "parallel", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What our sweeper is given as the task.

    Hydra hands a sweeper strings; the cells that these mean were composed and validated before anything
    ran, so the task brings them along.

    Attributes:
        cells: at least one; a cell that is there twice is run once.
        name: of the sweep.
        run_ids: of all its cells, of which these may be some.
        run_cell: run for each cell, in whatever process.
        overrides: as the sweep was asked for.
    """

    cells: Sequence[Cell]
    name: str
    run_ids: Sequence[str]
    run_cell: Task
    overrides: Sequence[str]

    @property
    def runs(self) -> Path:
        """The folder of runs."""
        return self.cells[0].experiment.paths.runs

    def __call__(self, config: DictConfig) -> float:
        """Run one of the cells."""
        return self.run_cell(config)


def run_search(overrides: list[str], task: Task) -> None:
    """Let a sweeper of the user's choice run cells, each chosen by what earlier ones gave."""
    with composer():
        ready_hydra().multirun(CONFIG_NAME, task, overrides)


def launch(sweep: Sweep) -> tuple[Mapping[str, Estimate], list[str]]:
    """Run a sweep with the launcher that it asks for; what is returned is `CellSweeper.sweep`'s.

    Hydra composes once more before it hands over, without what is swept: with the default model, say, of
    which an override of the swept ones may know nothing. So it is given the first cell.
    """
    with composer():
        first = first_choices(sweep.overrides)
        planned, problems = ready_hydra().multirun(CONFIG_NAME, sweep, first)
    return planned, problems


def why_no_record(config: DictConfig, *, task: Task) -> str | None:
    """Run a task, and say why it left no record; None when it did."""
    try:
        task(config)
    except Exception as error:  # noqa: BLE001 - one cell's, which the sweep tells at its end
        return sentence(error)
    return None


def sentence(error: BaseException) -> str:
    """Return what went wrong: the user's mistake in its own words, all else with its kind."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with those together that share a model, and among these a calibration set.

    So a process loads a model once and finds its statistics made. Groups and the cells of a group keep the
    order in which they come first.
    """
    models: dict[str, int] = {}
    sets: dict[str, int] = {}

    def place(cell: Cell) -> tuple[int, int]:
        model, calibration = _shared(cell.experiment)
        return models.setdefault(model, len(models)), sets.setdefault(calibration, len(sets))

    return sorted(cells, key=place)  # stable


def _shared(experiment: Experiment) -> tuple[str, str]:
    model = experiment.model.model_dump(mode="json")
    calibration = calibration_identity(experiment) if experiment.needs_calibration else None
    return hash_json([model, experiment.calibration.dtype, experiment.device]), hash_json(calibration)


def check_launcher(config: DictConfig) -> None:
    """Refuse a launcher whose extra is not installed, and one that would start no process.

    Raises:
        UserError: with the command that installs it, or the number that is meant.
    """
    module = str(config.launcher.get("_target_", "not.installed")).rpartition(".")[0]
    name = config.runtime.choices.get("hydra/launcher")
    try:
        is_installed = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        is_installed = False
    if not is_installed:
        extra = _EXTRAS.get(name)
        remedy = f"pip install 'faqbench[{extra}]'" if extra else f"install {module.split('.')[1]}"
        raise UserError(f"hydra/launcher={name} is not installed; {remedy}.")
    if config.launcher.get("n_jobs") == 0:
        raise UserError(
            "hydra.launcher.n_jobs=0 is not allowed: how many cells run at once, or -1 for one per core."
        )


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


def ready_hydra() -> Any:
    """Return what `composer()` made ready."""
    made = GlobalHydra.instance().hydra
    assert made is not None
    return made


def check_unfinished(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Check the models of cells that did not finish before, and return these.

    Those that did finish need their models no more.

    Raises:
        UserError: all mistakes of all cells, each once.
    """
    from faqbench.pipeline import check_models

    unfinished = [e for e in experiments if finished_record(e) is None]
    check_models(unfinished)
    return unfinished


def check_to_run(experiments: Sequence[Experiment]) -> None:
    """Check cells that are about to run: their models, and that those with terms of use were accepted.

    Raises:
        UserError: all mistakes of the models, each once; terms that nobody accepted.
    """
    from faqbench.assets import check_packaged_terms

    for name in dict.fromkeys(e.model.asset for e in check_unfinished(experiments)):
        if name is not None:
            check_packaged_terms(name)


def dtype_notes(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Yield a sentence on each dtype and device of the cells: why it is fast there, or how slow.

    Raises:
        UserError: for a dtype that a device of this machine does not have.
    """
    from faqbench.hardware import dtype_warning, fast_dtype, named_device

    for name, dtype in _choices(experiments):
        device = named_device(name)
        fast = fast_dtype(device)
        warning = dtype_warning(device, dtype) if _is_here(name) else None
        if warning is not None:
            yield warning
        elif dtype == fast.dtype:
            yield f"dtype={dtype} on {device}: {fast.reason}."
        else:
            yield f"dtype={dtype} on {device}, where dtype=auto means {fast.dtype}: {fast.reason}."


def safe_dtypes(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Yield a sentence on each dtype that the hardware was not there, or not able, to be asked for."""
    from faqbench.hardware import fast_dtype, named_device

    for name, dtype in _choices(experiments):
        fast = fast_dtype(named_device(name))
        if dtype == fast.dtype and not fast.is_known:
            yield f"dtype={dtype}: {fast.reason}."


def _choices(experiments: Sequence[Experiment]) -> Sequence[tuple[str, DType]]:
    return list(dict.fromkeys((e.device, e.dtype) for e in experiments))


def _is_here(device: str) -> bool:
    from faqbench.hardware import resolve_device

    try:
        resolve_device(device)
    except UserError:
        return False
    return True
