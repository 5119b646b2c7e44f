"""The cached stage that quantizes: codes, scales and reports, laid out by `quantization.checkpoint`.

    <full name>.safetensors   every quantized linear
    reports.json              the reports of linears and blocks, and what else the record says

A cell whose quantized weights are there needs neither statistics nor a walk; its record is the same.

The blocks of a streamed model are entries of their own until the stage is whole, so that a job that was
killed at one block goes on there, and ends with the same bytes. And so that a walk over them may serve the
other cells of a sweep as well: their cells find all blocks finished, and need no walk.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from faqbench.calibration import CalibrationSet
from faqbench.config import Experiment
from faqbench.evaluation import ProtocolTokens
from faqbench.foreign import read_as
from faqbench.models import describe_rotation, probe_logits
from faqbench.pipeline.cell import CellRun
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.keys import Key
from faqbench.quantization import (
    ActivationStore,
    BlockReport,
    Calibration,
    Companion,
    FinishedBlock,
    LinearReport,
    QuantizedLinear,
    QuantizedModel,
    RotationReport,
    StoredLinears,
    assign_grids,
    may_be_companion,
    quantize_model,
    reads_store,
    write_linear,
)

_EXACT = 1e-3  # how far apart logits of a rotated model may be where weights are float32
_ROUNDINGS = 4  # where weights have fewer digits: of the largest logit
_BLOCKS = "quantized_blocks"
# What cells have in common that are quantized in one walk.
_SHARED = (
    "model", "calibration", "scenario", "data", "seed", "limit", "allow_repeat", "device", "memory",
)  # fmt: skip
DRAWN_MEANS = "means drawn"  # the stage with mean|x| on the calibration set


def build_quantized(cell: CellRun, folder: Path) -> None:
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
            adapt_on=_adapted_on(cell),
        )
    begun = model.start()
    finished, beside = None, list[Companion]()
    if not begun.view.is_resident:
        finished = _KeptBlocks(cell, cell.keys.quantized(), folder)
        beside = _companions(cell, tokens)
    quantized = quantize_model(
        begun,
        experiment.quant,
        grids,
        store,
        tokens,
        cell.progress,
        keep=lambda name, linear: write_linear(folder, name, linear),
        finished=finished,
        beside=beside,
    )
    quantized = replace(quantized, rotation=rotation)
    (folder / "reports.json").write_text(json.dumps(asdict(quantized)))


def _adapted_on(cell: CellRun) -> torch.Tensor | None:
    name = cell.experiment.adapted_on
    if name is None:
        return None
    windows: ProtocolTokens = cell.get(f"windows {name}")
    return windows.tokens


@dataclass(frozen=True, kw_only=True)
class _Reports:
    linears: tuple[LinearReport, ...]
    traced: BlockReport | None


class _KeptBlocks:
    """The finished blocks of a stage, in the cache.

    Their files are those of the stage's own folder, where it is under way; a companion has none yet.
    """

    def __init__(self, cell: CellRun, key: Key, folder: Path | None = None) -> None:
        self._cache = cell.cache
        self._device = cell.device
        self._folder = folder
        self._model = cell.model
        self._key = key

    def has(self, index: int) -> bool:
        return self._cache.has(_BLOCKS, self._key_of(index))

    def load(self, index: int) -> FinishedBlock | None:
        path = self._cache.find(_BLOCKS, self._key_of(index))
        if path is None:
            return None
        reports, start = read_as(path / "reports.json", _Reports), len(self._prefix(index))
        stored = StoredLinears(path, self._device)
        return FinishedBlock(
            linears={name[start:]: stored[name] for name in stored},
            reports=reports.linears,
            traced=reports.traced,
        )

    def save(self, index: int, block: FinishedBlock) -> None:
        def build(folder: Path) -> None:
            for name, linear in block.linears.items():
                full = f"{self._prefix(index)}{name}"
                if self._folder is None:
                    write_linear(folder, full, linear)
                else:
                    file = f"{full}.safetensors"
                    _link(self._folder / file, folder / file)
            reports = asdict(_Reports(linears=block.reports, traced=block.traced))
            (folder / "reports.json").write_text(json.dumps(reports))

        self._cache.keep(_BLOCKS, self._key_of(index), build)

    def linears(self) -> Mapping[str, QuantizedLinear] | None:
        """Return those of all blocks by full name; None where one is missing."""
        per_block: list[MutableMapping[str, QuantizedLinear]] = []
        for index in range(self._model.architecture().n_blocks):
            path = self._cache.find(_BLOCKS, self._key_of(index))
            if path is None:
                return None
            per_block.append(cast("Any", StoredLinears(path, self._device)))
        return ChainMap(*per_block)

    def forget(self) -> None:
        for index in itertools.count():
            if not self.has(index):
                return
            self._cache.forget(_BLOCKS, self._key_of(index))

    def _prefix(self, index: int) -> str:
        return f"{self._model.architecture().blocks}.{index}."

    def _key_of(self, index: int) -> dict[str, object]:
        return {**self._key, "block": index}


def _link(source: Path, target: Path) -> None:
    """Have a file in a second place, as a copy where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def share_walk(one: Experiment, other: Experiment) -> bool:
    """Say whether a second cell may be quantized in the walk of a first one, whose model is streamed."""
    return (
        all(getattr(one, section) == getattr(other, section) for section in _SHARED)
        and other.quantizes
        and not (one.is_foreign or other.is_foreign)
        and (one.needs_calibration or not other.needs_calibration)
        and all(e.method["rotate"].is_idle and e.method["refine"].is_idle for e in (one, other))
        and may_be_companion(other.quant)
    )


def _companions(cell: CellRun, tokens: Calibration | None) -> list[Companion]:
    """Return the cells to come that are quantized in this one's walk."""
    architecture, this = cell.model.architecture(), cell.model.experiment
    keys = [cell.keys.quantized()]
    companions = []
    for other in cell.beside:
        if not share_walk(cell.experiment, other):
            continue
        experiment = other.model_copy(update={"model": this.model})
        key = cell.keys_of(experiment).quantized()
        blocks = _KeptBlocks(cell, key)
        is_done = cell.cache.has("quantized", key) or blocks.has(architecture.n_blocks - 1)
        if key in keys or is_done:
            continue
        keys.append(key)
        store = None
        if reads_store(other.quant):
            cell.get(DRAWN_MEANS)
            store = ActivationStore(cell.entry(DRAWN_MEANS), cell.device)
        companions.append(
            Companion(
                quant=other.quant,
                grids=assign_grids(architecture, other.quant),
                store=store,
                calibration=tokens if other.needs_calibration else None,
                finished=blocks,
            )
        )
    return companions


def finished_linears(cell: CellRun, experiment: Experiment) -> Mapping[str, QuantizedLinear] | None:
    """Return the quantized linears of another cell by full name; None where one is missing yet.

    Args:
        cell: that shares its walk.
        experiment: the other one's, with the model as this one has it pinned.
    """
    key = cell.keys_of(experiment).quantized()
    whole = cell.cache.find("quantized", key)
    if whole is not None:
        return StoredLinears(whole, cell.device)
    return _KeptBlocks(cell, key).linears()


def _statistics(cell: CellRun) -> ActivationStore | None:
    """Return what is known of the activations: all, the means alone, or nothing where nothing is read."""
    if not reads_store(cell.experiment.quant):
        return None
    if "statistics" in cell.stages:
        statistics: ActivationStore = cell.get("statistics")
        return statistics
    cell.get(DRAWN_MEANS)
    return ActivationStore(cell.entry(DRAWN_MEANS), cell.device)


def load_quantized(cell: CellRun, folder: Path) -> QuantizedModel:
    """Read the reports of a cell's quantized weights, which its model will evaluate from now on."""
    cell.model.use(folder)
    _KeptBlocks(cell, cell.keys.quantized()).forget()  # the stage is whole
    return read_reports(folder)


def read_reports(folder: Path) -> QuantizedModel:
    """Read what the walk left behind."""
    return read_as(folder / "reports.json", QuantizedModel)


def _rotation(model: CellModel) -> RotationReport:
    """Compare the rotated model with the one as loaded, before anything is quantized."""
    view = model.pristine().view
    expected = probe_logits(view)
    logits = probe_logits(model.start().view)
    rounding = _ROUNDINGS * torch.finfo(view.dtype).eps * float(expected.abs().max())
    return RotationReport(
        **describe_rotation(view.architecture, model.experiment.quant),
        logit_error=float((logits - expected).abs().max()),
        tolerance=max(_EXACT, rounding),
    )
