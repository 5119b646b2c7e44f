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
from faqbench.config import Experiment, UserError
from faqbench.evaluation import (
    Overlap,
    calibration_grams,
    count_overlap,
    protocol_passages,
    resolve_protocol,
    task_names,
    task_passages,
)
from faqbench.evaluation.overlap import CODE_VERSION
from faqbench.stages import Progress, StageCache, hash_json


def guard_against_leaks(
    experiment: Experiment, calibration: CalibrationSet, cache: StageCache, progress: Progress
) -> dict[str, int]:
    """Return how many passages of each protocol and task overlap with the calibration texts.

    Raises:
        UserError: for an evaluation that overlaps and is not allowed to, and for one whose text cannot
            be had.
    """
    settings, allowed = experiment.evaluation, experiment.scenario.allow_overlap
    counts = {}
    for name in (*settings.protocols, *settings.tasks):
        found = _overlap(name, experiment, calibration, cache, progress)
        counts[name] = found.n_overlapping
        if found.n_overlapping and not any(fnmatchcase(name, pattern) for pattern in allowed):
            raise UserError(
                f"'{name}' shares {found.n_overlapping} of its {found.n_passages} passages with the "
                f"texts of the calibration set ({calibration.domain}), so its number would flatter the "
                "method; calibrate on other text, or allow it with "
                f"scenario.allow_overlap=[{name}]."
            )
    return counts


def _overlap(
    name: str,
    experiment: Experiment,
    calibration: CalibrationSet,
    cache: StageCache,
    progress: Progress,
) -> Overlap:
    is_task = name in experiment.evaluation.tasks
    # A task of the hub is known by its name, so that a finished cell does not ask the hub again.
    needs_hub = is_task and name not in task_names()
    passages = None if needs_hub else _passages(name, experiment, progress)

    def build(folder: Path) -> None:
        texts = _passages(name, experiment, progress) if passages is None else passages
        found = count_overlap(texts, calibration_grams(calibration.texts))
        (folder / "overlap.json").write_text(json.dumps(asdict(found)))

    key = {
        "version": CODE_VERSION,
        "calibration": hash_json(list(calibration.texts)),
        "evaluation": name if passages is None else hash_json(list(passages)),
        "limit": experiment.n_documents() if is_task else None,
    }
    entry = cache.get("overlap", key, build, name)
    return Overlap(**json.loads((entry.path / "overlap.json").read_text()))


def _passages(name: str, experiment: Experiment, progress: Progress) -> Sequence[str]:
    if name in experiment.evaluation.tasks:
        return task_passages(name, experiment, progress)
    return protocol_passages(resolve_protocol(name, experiment), experiment, progress)
