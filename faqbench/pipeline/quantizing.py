"""The cached stage that quantizes: codes, scales and reports, laid out by `quantization.checkpoint`.

    <full name>.safetensors   every quantized linear
    reports.json              the reports of linears and blocks, and what else the record says

A cell whose quantized weights are there needs neither statistics nor a walk; its record is the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from faqbench.calibration import CalibrationSet
from faqbench.config import Experiment
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.keys import quantized_key
from faqbench.pipeline.statistics import Statistics
from faqbench.pipeline.timing import Timings
from faqbench.quantization import (
    BlockReport,
    Calibration,
    LinearReport,
    QuantizedModel,
    assign_grids,
    quantize_model,
    write_linear,
)
from faqbench.stages import Progress, StageCache


def quantized_weights(
    experiment: Experiment,
    model: CellModel,
    calibration: CalibrationSet | None,
    statistics: Statistics | None,
    fingerprints: Mapping[str, str],
    cache: StageCache,
    timings: Timings,
    progress: Progress,
    *,
    while_pristine: Callable[[], object] | None = None,
) -> QuantizedModel:
    """Return the reports of a cell's quantized weights, which the model will evaluate from now on.

    Args:
        experiment: a cell that quantizes.
        model: the cell's.
        calibration: its tokens; None for methods that read none.
        statistics: of the full precision pass, asked for when the weights are not in the cache.
        fingerprints: `weights` and, for a method that reads activations, `calibration`.
        cache: where the stage is kept and found.
        timings: of the run.
        progress: shows the walk.
        while_pristine: called before weights are replaced, unless they are in the cache: what else needs
            the full precision model would have to restore it afterwards.

    Raises:
        UserError: when the method does not fit the model, or its weights or activations are not finite.
    """

    def build(folder: Path) -> None:
        # First, since it finds the user's mistakes.
        pristine = model.pristine()
        grids = assign_grids(pristine.architecture, experiment.quant)
        store = None if statistics is None else statistics()
        tokens = None
        if calibration is not None:
            tokens = Calibration(
                tokens=calibration.tokens,
                batch_size=experiment.calibration.batch_size,
                select=experiment.calibration.tokens,
            )
        if while_pristine is not None:
            while_pristine()
        quantized = quantize_model(
            pristine,
            experiment.quant,
            grids,
            store,
            tokens,
            progress,
            keep=lambda name, linear: write_linear(folder, name, linear),
        )
        (folder / "reports.json").write_text(json.dumps(asdict(quantized)))

    key = quantized_key(experiment, fingerprints, model.device.type)
    with timings.stage("quantize") as stage:
        entry = cache.get("quantized", key, build, experiment.quant.name)
        stage.cached = entry.cached
        model.use(entry.path)
    return read_reports(entry.path)


def read_reports(folder: Path) -> QuantizedModel:
    """Read what the walk left behind."""
    raw = json.loads((folder / "reports.json").read_text())
    return QuantizedModel(
        linears=tuple(LinearReport(**r) for r in raw["linears"]),
        blocks=tuple(BlockReport(**r) for r in raw["blocks"]),
        skipped_scales=tuple(raw["skipped_scales"]),
        n_window_cuts=raw["n_window_cuts"],
    )
