"""The model of one cell, loaded when a stage first needs it: a cell that is all cached never loads it.

What is known of the weights without loading them, their fingerprint above all, is a cached stage of its
own, so that the keys of all later stages are known at once. The same is true of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from faqbench.config import Experiment
from faqbench.models import (
    Architecture,
    LoadedModel,
    Model,
    ModelHolder,
    Packed,
    RotatedTensors,
    budget_of,
    check_ids,
    open_packed,
    pinned,
    weights_source,
)
from faqbench.quantization import QuantizedLinear, QuantizedTensors, StoredLinears, quantize_inputs
from faqbench.records import StageTiming
from faqbench.stages import Progress, StageCache


@dataclass(frozen=True, kw_only=True)
class WeightFacts:
    """Facts of a model as loaded.

    Attributes:
        fingerprint: sha256 of all weights in the dtype of the calibration.
        model_fingerprint: sha256 of these and of the settings of the forward.
        n_linears: linears of the decoder blocks.
        n_parameters: all parameters, tied ones once.
        vocab_size: rows of the embedding: the token ids that the model knows.
        warnings: of loading them.
    """

    fingerprint: str
    model_fingerprint: str
    n_linears: int
    n_parameters: int
    vocab_size: int
    warnings: tuple[str, ...]


class CellModel:
    """A cell's model and what is known of it, with the attributes of a `LoadedModel`.

    Attributes:
        experiment: the cell's, with the commit of a hub's model.
        device: where the model runs.
        facts: of the weights as loaded; None until they are known.
        loading: what loading it has taken, and whether it was in memory whenever it was wanted.
    """

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device,
        holder: ModelHolder,
        cache: StageCache,
        progress: Progress,
    ) -> None:
        self.experiment = experiment.model_copy(update={"model": pinned(experiment.model)})
        self.device = device
        self.facts: WeightFacts | None = None
        self.loading = StageTiming(seconds=0.0, cached=True)
        self._holder = holder
        self._cache = cache
        self._progress = progress
        self._loaded: LoadedModel | None = None
        self._quantized: Path | None = None
        self._packed_place: Path | None = None
        self._packed: Packed | None = None

    def fetch(self) -> None:
        """Load a hub's model that is not here yet: its commit and its files are known afterwards.

        Raises:
            UserError: when it cannot be loaded.
        """
        if weights_source(self.experiment.model) is None:
            self.pristine()

    def architecture(self) -> Architecture:
        """Return where the blocks and linears are."""
        return (self._loaded or self.pristine()).architecture

    def tokenizer(self) -> Any:
        """Return the model's transformers tokenizer, which the holder keeps."""
        return self._holder.tokenizer(self.experiment.model, self._progress)

    def check_ids(self, largest: int, what: str) -> None:
        """Refuse tokens of which the largest is one that the model does not know.

        Raises:
            UserError: naming the token, and `what` holds it.
        """
        assert self.facts is not None, "the weights are the first stage of every cell"
        if largest >= self.facts.vocab_size:
            check_ids(largest, self.facts.vocab_size, self.tokenizer(), what)

    def pristine(self) -> LoadedModel:
        """Return the model with its weights as loaded."""
        n_loads = self._holder.n_loads
        with self._cache.lap() as lap:
            self._loaded = self._holder.pristine(
                self.experiment.model,
                getattr(torch, self.experiment.calibration.dtype),
                self.device,
                self._progress,
                None if self.facts is None else self.facts.fingerprint,
                budget_of(self.experiment.memory, self.device),
            )
        was_there = self._holder.n_loads == n_loads
        self.loading = StageTiming(
            seconds=self.loading.seconds + lap.seconds, cached=self.loading.cached and was_there
        )
        return self._loaded

    def start(self) -> LoadedModel:
        """Return the model that the method begins with: as loaded, or rotated."""
        loaded, rotated = self._loaded or self.pristine(), self.rotated()
        if rotated is None:
            return loaded

        def make(pristine: Model) -> Model:
            return pristine.view(tensors=rotated, prepare=rotated.prepare)

        quant = self.experiment.quant
        key = (self.experiment.model.name, quant.rotate, quant.rotation.model_dump_json())
        return replace(loaded, view=self._holder.view(key, make))

    def rotated(self) -> RotatedTensors | None:
        """Return the tensors of the rotated model that is quantized; None for methods that rotate none."""
        if self.experiment.method["rotate"].is_idle:
            return None
        view = (self._loaded or self.pristine()).view
        return RotatedTensors(view.tensors, view.architecture, self.experiment.quant)

    def use(self, quantized: Path) -> None:
        """Evaluate the quantized weights of a folder; see `quantization.checkpoint`."""
        self._quantized = quantized

    def use_packed(self, place: Path) -> None:
        """Take quantized weights from a checkpoint that another tool made; see `models.packed`."""
        self._packed_place = place

    def packed(self) -> Packed:
        """Return that checkpoint, opened beside the model as loaded, its parent.

        Raises:
            UserError: when it is none of this parent's.
        """
        assert self._packed_place is not None, "a checkpoint is named before it is opened"
        if self._packed is None:
            self._packed = open_packed(self._packed_place, self.pristine().view)
        return self._packed

    def full_precision(self) -> Model:
        """Return the model as loaded, in the evaluation's dtype."""
        return self._view(None)

    def evaluated(self) -> Model:
        """Return the model to evaluate: quantized where the cell quantizes, in the evaluation's dtype."""
        return self._view(self._quantized)

    def view_of(self, experiment: Experiment, linears: Mapping[str, QuantizedLinear]) -> Model:
        """Return the model as another cell quantized it, without a rotation, to be evaluated."""
        return _quantized_view((self._loaded or self.pristine()).view, experiment, linears, None)

    def _view(self, quantized: Path | None) -> Model:
        experiment = self.experiment
        dtypes = _dtypes(experiment)
        if quantized is None and dtypes[0] == dtypes[1]:
            return self.pristine().view

        def make(pristine: Model) -> Model:
            if quantized is None:
                return pristine.view(dtypes=dtypes)
            if self.experiment.is_foreign:
                return pristine.view(tensors=self.packed(), dtypes=dtypes)
            linears = StoredLinears(quantized, self.device)
            return _quantized_view(pristine, experiment, linears, self.rotated())

        if self._loaded is None:
            self.pristine()
        if quantized is not None and self.experiment.is_foreign:
            self.packed()
        return self._holder.view((experiment.model.name, quantized, *dtypes), make)


def _dtypes(experiment: Experiment) -> list[torch.dtype]:
    """Return what the weights of an evaluated model are cast to, one after the other."""
    return [getattr(torch, d) for d in (experiment.calibration.dtype, experiment.dtype)]


def _quantized_view(
    pristine: Model,
    experiment: Experiment,
    linears: Mapping[str, QuantizedLinear],
    rotated: RotatedTensors | None,
) -> Model:
    """Return a model with quantized linears, which round their inputs where the method says so."""

    def prepare(module: Any, architecture: Architecture) -> None:
        if rotated is not None:
            rotated.prepare(module, architecture)
        of_keys = None if rotated is None else rotated.of_keys
        quantize_inputs(linears, experiment.quant.activations, module, architecture, of_keys)

    base = pristine.tensors if rotated is None else rotated
    tensors = QuantizedTensors(base, linears)
    return pristine.view(tensors=tensors, dtypes=_dtypes(experiment), prepare=prepare)
