"""The cached stage that quantizes: codes, scales and reports, laid out by `quantization.checkpoint`.

    <full name>.safetensors   every quantized linear
    reports.json              the reports of linears and blocks, and what else the record says

A cell whose quantized weights are there needs neither statistics nor a walk; its record is the same.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from faqbench.calibration import CalibrationSet
from faqbench.foreign import read_as
from faqbench.models import describe_rotation, probe_logits
from faqbench.pipeline.cell import Cell
from faqbench.pipeline.cell_model import CellModel
from faqbench.quantization import (
    ActivationStore,
    Calibration,
    QuantizedModel,
    RotationReport,
    assign_grids,
    quantize_model,
    reads_store,
    write_linear,
)

_EXACT = 1e-3  # how far apart logits of a rotated model may be where weights are float32
_ROUNDINGS = 4  # where weights have fewer digits: of the largest logit
DRAWN_MEANS = "means drawn"  # the stage with mean|x| on the calibration set


def build_quantized(cell: Cell, folder: Path) -> None:
    """Quantize the cell's model, and write its weights and their reports.

    Raises:
        UserError: when the method does not fit the model, or its weights or activations are not finite.
    """
    experiment, model = cell.experiment, cell.model
    # First, since it finds the user's mistakes.
    pristine = model.pristine()
    grids = assign_grids(pristine.architecture, experiment.quant)
    rotation = None if experiment.method["rotate"].is_idle else _rotation(model)
    store = _statistics(cell)
    tokens = None
    if experiment.needs_calibration:
        calibration: CalibrationSet = cell.get("calibration")
        tokens = Calibration(
            tokens=calibration.tokens,
            batch_size=experiment.calibration.batch_size,
            select=experiment.calibration.tokens,
        )
    quantized = quantize_model(
        model.start(),
        experiment.quant,
        grids,
        store,
        tokens,
        cell.progress,
        keep=lambda name, linear: write_linear(folder, name, linear),
    )
    quantized = replace(quantized, rotation=rotation)
    (folder / "reports.json").write_text(json.dumps(asdict(quantized)))


def _statistics(cell: Cell) -> ActivationStore | None:
    """Return what is known of the activations: all, the means alone, or nothing where nothing is read."""
    if not reads_store(cell.experiment.quant):
        return None
    if "statistics" in cell.stages:
        found: ActivationStore = cell.get("statistics")
        return found
    cell.get(DRAWN_MEANS)
    return ActivationStore(cell.entry(DRAWN_MEANS), cell.device)


def load_quantized(cell: Cell, folder: Path) -> QuantizedModel:
    """Read the reports of a cell's quantized weights, which its model will evaluate from now on."""
    cell.model.use(folder)
    return read_reports(folder)


def read_reports(folder: Path) -> QuantizedModel:
    """Read what the walk left behind."""
    return read_as(folder / "reports.json", QuantizedModel)


def _rotation(model: CellModel) -> RotationReport:
    """Compare the rotated model with the one as loaded, before anything is quantized."""
    view = model.pristine().view
    expected = probe_logits(view)
    found = probe_logits(model.start().view)
    rounding = _ROUNDINGS * torch.finfo(view.dtype).eps * float(expected.abs().max())
    return RotationReport(
        **describe_rotation(view.architecture, model.experiment.quant),
        logit_error=float((found - expected).abs().max()),
        tolerance=max(_EXACT, rounding),
    )
