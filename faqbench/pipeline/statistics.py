"""The cached stage between a calibration set and the quantizers: one full precision pass."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from faqbench.calibration import CalibrationSet
from faqbench.config import Experiment
from faqbench.models import LoadedModel
from faqbench.pipeline.cell import Cell
from faqbench.pipeline.keys import statistics_key
from faqbench.quantization import ActivationStore, observe
from faqbench.stages import Progress, StageCache


def build_statistics(cell: Cell, folder: Path) -> None:
    """Observe the cell's model in full precision on its calibration set."""
    calibration: CalibrationSet = cell.get("calibration")
    _observe(cell.experiment, cell.model.start(), calibration, cell.progress, folder)


def load_statistics(cell: Cell, folder: Path) -> ActivationStore:
    """Open what the pass left behind."""
    return ActivationStore(folder, cell.device)


def activation_store(
    experiment: Experiment,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    cache: StageCache,
    progress: Progress,
) -> tuple[ActivationStore, bool]:
    """Return the statistics of a calibration set of a model in hand, and whether they were cached."""
    device = loaded.view.device
    given = {"model": loaded.model_fingerprint, "calibration": calibration.fingerprint}
    build = partial(_observe, experiment, loaded, calibration, progress)
    entry = cache.get("statistics", statistics_key(experiment, given, device.type), build)
    return ActivationStore(entry.path, device), entry.cached


def _observe(
    experiment: Experiment,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    progress: Progress,
    folder: Path,
) -> None:
    observe(
        loaded,
        calibration.tokens,
        batch_size=experiment.calibration.batch_size,
        select=experiment.calibration.tokens,
        folder=folder,
        progress=progress,
    )
