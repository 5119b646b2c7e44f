"""The leak guard: no number on text that the quantizer was calibrated on, unless the user says so by name.

Each protocol and task of a cell is compared with the texts that its calibration windows were drawn from
(`evaluation.overlap`). What overlaps is counted, recorded, and refused before the long stages begin;
`scenario.allow_overlap` names the protocols and tasks, or patterns of them, that may overlap.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from faqbench.calibration import CalibrationSet
from faqbench.config import UserError
from faqbench.evaluation import (
    Overlap,
    calibration_grams,
    count_overlap,
    protocol_passages,
    resolve_protocol,
    task_passages,
)
from faqbench.foreign import read_as
from faqbench.pipeline.cell import Cell


def build_overlap(name: str, cell: Cell, folder: Path) -> None:
    """Count the passages of a protocol or task that share text with the calibration set.

    Raises:
        UserError: for an evaluation whose text cannot be had.
    """
    calibration: CalibrationSet = cell.get("calibration")
    found = count_overlap(_passages(name, cell), calibration_grams(calibration.texts))
    (folder / "overlap.json").write_text(json.dumps(asdict(found)))


def load_overlap(name: str, cell: Cell, folder: Path) -> int:
    """Return how many passages of a protocol or task overlap with the calibration texts.

    Raises:
        UserError: when some do and that is not allowed.
    """
    found = read_as(folder / "overlap.json", Overlap)
    allowed = cell.experiment.scenario.allow_overlap
    if found.n_overlapping and not any(fnmatchcase(name, pattern) for pattern in allowed):
        calibration: CalibrationSet = cell.get("calibration")
        raise UserError(
            f"'{name}' shares {found.n_overlapping} of its {found.n_passages} passages with the "
            f"texts of the calibration set ({calibration.domain}), so its number would flatter the "
            "method; calibrate on other text, or allow it with "
            f"scenario.allow_overlap=[{name}]."
        )
    return found.n_overlapping


def _passages(name: str, cell: Cell) -> Sequence[str]:
    if name in cell.experiment.evaluation.tasks:
        return task_passages(name, cell.experiment, cell.progress)
    protocol = resolve_protocol(name, cell.experiment)
    return protocol_passages(protocol, cell.experiment, cell.progress)
