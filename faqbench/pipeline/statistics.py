"""The cached stage between a calibration set and the quantizers: one full precision pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as once
from pathlib import Path

from faqbench.calibration import CalibrationSet
from faqbench.config import Experiment
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.keys import statistics_key
from faqbench.pipeline.timing import Timings
from faqbench.quantization import ActivationStore, observe, reads_store
from faqbench.stages import Progress, StageCache

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

    def build(folder: Path) -> None:
        observe(
            model.pristine(),
            calibration.tokens,
            batch_size=experiment.calibration.batch_size,
            select=experiment.calibration.tokens,
            folder=folder,
            progress=progress,
        )

    @once
    def statistics() -> ActivationStore:
        tokens = calibration.fingerprint
        key = statistics_key(experiment, model.fingerprint, tokens, model.device.type)
        with timings.stage("statistics") as stage:
            entry = cache.get("statistics", key, build)
            stage.cached = entry.cached
        return ActivationStore(entry.path, model.device)

    return statistics
