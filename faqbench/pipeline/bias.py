"""How far a calibration set is from the reference set, which a record says of every calibrated cell.

The distance in activations needs mean|x| of the full precision pass on both sets. Methods that search in
the set's statistics have them already, and so has any method whose draw another one has searched in; the
rest (GPTQ and the corrections, which see the quantized stream only) pay for one forward pass per draw,
without Gram matrices. The numbers are the same to the bit either way, so what is cached decides the time
alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from faqbench.calibration import CalibrationSet, activation_shift, token_divergence
from faqbench.foreign import read_as
from faqbench.pipeline.cell import CellRun
from faqbench.pipeline.keys import statistics_key
from faqbench.quantization.means import copy_means, observe_means, read_means

_DRAWN, _REFERENCE = "calibration", "calibration reference"
_UNKNOWN = {"reference": None, "token_js": None, "activation_shift": None}


class _StoredDistance(TypedDict):
    token_js: float
    activation_shift: dict[str, float]


def build_distance(cell: CellRun, folder: Path) -> None:
    """Measure the distance of the cell's calibration set from its reference set."""
    drawn: CalibrationSet = cell.get(_DRAWN)
    reference: CalibrationSet = cell.get(_REFERENCE)
    shift = activation_shift(cell.get("means drawn"), cell.get("means reference"))
    distances = {"token_js": token_divergence(drawn.tokens, reference.tokens), "activation_shift": shift}
    (folder / "distance.json").write_text(json.dumps(distances))


def load_distance(cell: CellRun, folder: Path) -> dict[str, Any]:
    """Read the distance, as a record says it."""
    distance = read_as(folder / "distance.json", _StoredDistance)
    reference: CalibrationSet = cell.get(_REFERENCE)
    named = f"{len(reference.tokens)} windows of the selection part of {reference.domain}"
    return {"reference": named, **distance}


def no_distance(reason: str) -> dict[str, Any]:
    """Return what a record says where there is no reference set."""
    return _UNKNOWN | {"reason": f"there is no reference set: {reason}"}


def build_drawn_means(cell: CellRun, folder: Path) -> None:
    """Take mean|x| on the calibration set from its statistics, or by a pass of its own."""
    there = _statistics(cell)
    if there is None:
        _observe(cell, _DRAWN, folder)
    else:
        copy_means(there, folder)


def _statistics(cell: CellRun) -> Path | None:
    """Return where the statistics of the model as loaded are; None where no method searched in them."""
    if not cell.experiment.method["rotate"].is_idle:  # its statistics are in another basis
        return None
    if "statistics" in cell.stages:
        cell.get("statistics")
        return cell.entry("statistics")
    key = statistics_key(cell.model.experiment, cell.fingerprints, cell.device.type)
    return cell.cache.find("statistics", key)


def build_reference_means(cell: CellRun, folder: Path) -> None:
    """Take mean|x| on the reference set."""
    _observe(cell, _REFERENCE, folder)


def load_means(cell: CellRun, folder: Path) -> dict[str, list[Tensor]]:
    """Read mean|x| by role, of every block in turn."""
    return read_means(folder, cell.model.architecture.n_blocks)


def _observe(cell: CellRun, tokens: str, folder: Path) -> None:
    calibration: CalibrationSet = cell.get(tokens)
    settings = cell.experiment.calibration
    observe_means(
        cell.model.pristine(),
        calibration.tokens,
        batch_size=settings.batch_size,
        select=settings.tokens,
        folder=folder,
        progress=cell.progress,
    )
