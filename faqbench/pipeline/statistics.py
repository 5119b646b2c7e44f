"""The cached stage between a calibration set and the quantizers: one full precision pass."""

from __future__ import annotations

from pathlib import Path

from faqbench.calibration import CalibrationSet
from faqbench.config import Experiment
from faqbench.models import LoadedModel
from faqbench.quantization import ActivationStore, observe
from faqbench.quantization.activations import CODE_VERSION
from faqbench.stages import Progress, StageCache


def activation_store(
    experiment: Experiment,
    loaded: LoadedModel,
    calibration: CalibrationSet,
    cache: StageCache,
    progress: Progress,
) -> tuple[ActivationStore, bool]:
    """Return the statistics of a calibration set, and whether they were cached.

    They depend on the weights, the tokens, how tokens count and the batch size (by rounding); not on
    bits, window, gamma or any other choice of a quantizer, so one pass serves a whole sweep.
    """
    settings = experiment.calibration

    def build(folder: Path) -> None:
        observe(
            loaded,
            calibration.tokens,
            batch_size=settings.batch_size,
            select=settings.tokens,
            folder=folder,
            progress=progress,
        )

    key = {
        "version": CODE_VERSION,
        "weights": loaded.fingerprint,
        "tokens": calibration.fingerprint,
        "select": settings.tokens,
        "batch_size": settings.batch_size,
        "device": next(loaded.model.parameters()).device.type,
    }
    entry = cache.get("statistics", key, build)
    device = next(loaded.model.parameters()).device
    return ActivationStore(entry.path, device), entry.cached
