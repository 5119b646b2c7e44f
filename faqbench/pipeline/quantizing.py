"""The cached stage that quantizes: codes, scales and reports, laid out by `quantization.checkpoint`.

    <full name>.safetensors   every quantized linear
    reports.json              the reports of linears and blocks, and what else the record says

A cell whose quantized weights are there needs neither statistics nor a walk; its record is the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from faqbench.calibration import CalibrationSet
from faqbench.pipeline.cell import Cell
from faqbench.quantization import (
    BlockReport,
    Calibration,
    LinearReport,
    QuantizedModel,
    assign_grids,
    quantize_model,
    write_linear,
)


def build_quantized(cell: Cell, folder: Path) -> None:
    """Quantize the cell's model, and write its weights and their reports.

    Raises:
        UserError: when the method does not fit the model, or its weights or activations are not finite.
    """
    experiment, model = cell.experiment, cell.model
    # First, since it finds the user's mistakes.
    pristine = model.pristine()
    grids = assign_grids(pristine.architecture, experiment.quant)
    store = cell.get("statistics") if "statistics" in cell.stages else None
    tokens = None
    if experiment.needs_calibration:
        calibration: CalibrationSet = cell.get("calibration")
        tokens = Calibration(
            tokens=calibration.tokens,
            batch_size=experiment.calibration.batch_size,
            select=experiment.calibration.tokens,
        )
    quantized = quantize_model(
        pristine,
        experiment.quant,
        grids,
        store,
        tokens,
        cell.progress,
        keep=lambda name, linear: write_linear(folder, name, linear),
    )
    (folder / "reports.json").write_text(json.dumps(asdict(quantized)))


def load_quantized(cell: Cell, folder: Path) -> QuantizedModel:
    """Read the reports of a cell's quantized weights, which its model will evaluate from now on."""
    cell.model.use(folder)
    return read_reports(folder)


def read_reports(folder: Path) -> QuantizedModel:
    """Read what the walk left behind."""
    raw = json.loads((folder / "reports.json").read_text())
    return QuantizedModel(
        linears=tuple(LinearReport(**r) for r in raw["linears"]),
        blocks=tuple(BlockReport(**r) for r in raw["blocks"]),
        skipped_scales=tuple(raw["skipped_scales"]),
        n_window_cuts=raw["n_window_cuts"],
    )
