"""The cached stage between a calibration set and the quantizers: one full precision pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as once
from pathlib import Path

import torch

from faqbench.calibration import CalibrationSet
from faqbench.config import Experiment
from faqbench.models import LoadedModel
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.keys import statistics_key
from faqbench.pipeline.timing import Timings
from faqbench.quantization import ActivationStore, observe, reads_store
from faqbench.stages import CacheEntry, Progress, StageCache

Statistics = Callable[[], ActivationStore]


def statistics_of(
    experiment: Experiment,
    model: CellModel,
    calibration: CalibrationSet,
    cache: StageCache,
    timings: Timings,
    progress: Progress,
) -> Statistics | None:
    """Return a function that gives the statistics of a calibration set when a stage needs them.

    Returns:
        None for methods that read no statistics of the full precision pass.
    """
    if not reads_store(experiment.quant):
        return None

    @once
    def statistics() -> ActivationStore:
        with timings.stage("statistics") as stage:
            entry = _entry(
                experiment,
                model.pristine,
                model.fingerprints["model"],
                model.device,
                calibration,
                cache,
                progress,
            )
            stage.cached = entry.cached
        return ActivationStore(entry.path, model.device)

    return statistics


def activation_store(
    experiment: Experiment,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    cache: StageCache,
    progress: Progress,
) -> tuple[ActivationStore, bool]:
    """Return the statistics of a calibration set of a model in hand, and whether they were cached."""
    device = loaded.view.device
    entry = _entry(
        experiment, lambda: loaded, loaded.model_fingerprint, device, calibration, cache, progress
    )
    return ActivationStore(entry.path, device), entry.cached


def _entry(
    experiment: Experiment,
    pristine: Callable[[], LoadedModel],
    model: str,
    device: torch.device,
    calibration: CalibrationSet,
    cache: StageCache,
    progress: Progress,
) -> CacheEntry:
    def build(folder: Path) -> None:
        observe(
            pristine(),
            calibration.tokens,
            batch_size=experiment.calibration.batch_size,
            select=experiment.calibration.tokens,
            folder=folder,
            progress=progress,
        )

    key = statistics_key(experiment, model, calibration.fingerprint, device.type)
    return cache.get("statistics", key, build)
