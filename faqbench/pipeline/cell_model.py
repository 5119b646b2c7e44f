"""The model of one cell, loaded when a stage first needs it: a cell that is all cached never loads it.

What is known of the weights without loading them, their fingerprint above all, is a cached stage of its
own, so that the keys of all later stages are known at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from faqbench.config import Experiment
from faqbench.config.experiment import ModelSection
from faqbench.models import (
    Architecture,
    LoadedModel,
    Model,
    ModelHolder,
    budget_of,
    fingerprint_tokenizer,
    pinned,
)
from faqbench.pipeline.keys import tokenizer_key, weights_key
from faqbench.pipeline.timing import Timings
from faqbench.quantization import QuantizedTensors, StoredLinears, quantize_inputs
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
        device: where the model runs.
        facts: of the weights as loaded.
    """

    def __init__(
        self,
        experiment: Experiment,
        device: torch.device,
        holder: ModelHolder,
        cache: StageCache,
        timings: Timings,
        progress: Progress,
    ) -> None:
        self.device = device
        self.facts = WeightFacts(
            fingerprint="",
            model_fingerprint="",
            n_linears=0,
            n_parameters=0,
            vocab_size=0,
            warnings=(),
        )
        self._experiment = experiment.model_copy(update={"model": pinned(experiment.model)})
        self._holder = holder
        self._cache = cache
        self._timings = timings
        self._progress = progress
        self._loaded: LoadedModel | None = None
        self._quantized: Path | None = None

    def find_facts(self) -> None:
        """Look the facts up, or load the model and take them.

        Raises:
            UserError: when the model cannot be loaded.
        """
        with self._timings.stage("load") as stage:
            key = weights_key(self._experiment)
            if key is None:  # a hub's model that is not here yet: its commit is known afterwards
                self.pristine()
                key = weights_key(self._experiment)
                assert key is not None, "a model that was loaded has a source"
            entry = self._cache.get("weights", key, self._write_facts)
            stage.cached = entry.cached
        found = json.loads((entry.path / "facts.json").read_text())
        self.facts = WeightFacts(**{**found, "warnings": tuple(found["warnings"])})

    @property
    def section(self) -> ModelSection:
        """Where the model comes from, with the commit of a hub's."""
        return self._experiment.model

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the weights as loaded, of the model (all that its forward depends on), of its tokenizer."""
        return {
            "weights": self.facts.fingerprint,
            "model": self.facts.model_fingerprint,
            "tokenizer": self._tokenizer_fingerprint,
        }

    @property
    def architecture(self) -> Architecture:
        """Where the blocks and linears are."""
        return (self._loaded or self.pristine()).architecture

    @cached_property
    def tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self._holder.tokenizer(self._experiment.model, self._progress)

    def pristine(self) -> LoadedModel:
        """Return the model with its weights as loaded."""
        n_loads = self._holder.n_loads
        with self._timings.stage("load") as stage, self._cache.uncounted():
            self._loaded = self._holder.pristine(
                self._experiment.model,
                getattr(torch, self._experiment.calibration.dtype),
                self.device,
                self._progress,
                self.facts.fingerprint or None,
                budget_of(self._experiment.memory, self.device),
            )
            stage.cached = self._holder.n_loads == n_loads
        return self._loaded

    def use(self, quantized: Path) -> None:
        """Evaluate the quantized weights of a folder; see `quantization.checkpoint`."""
        self._quantized = quantized

    @property
    def full_precision(self) -> Model:
        """The model as loaded, in the evaluation's dtype."""
        return self._view(None)

    @property
    def evaluated(self) -> Model:
        """The model to evaluate: quantized where the cell quantizes, in the evaluation's dtype."""
        return self._view(self._quantized)

    def _view(self, quantized: Path | None) -> Model:
        experiment = self._experiment
        dtypes = [getattr(torch, d) for d in (experiment.calibration.dtype, experiment.dtype)]
        if quantized is None and dtypes[0] == dtypes[1]:
            return self.pristine().view
        activations = experiment.quant.activations

        def make(pristine: Model) -> Model:
            if quantized is None:
                return pristine.view(dtypes=dtypes)
            linears = StoredLinears(quantized, self.device)
            return pristine.view(
                tensors=QuantizedTensors(pristine.tensors, linears),
                dtypes=dtypes,
                prepare=partial(quantize_inputs, linears, activations),
            )

        if self._loaded is None:
            self.pristine()
        return self._holder.view((self._experiment.model.name, quantized, *dtypes), make)

    @cached_property
    def _tokenizer_fingerprint(self) -> str:
        key = tokenizer_key(self.section)
        if key is None:  # of the hub, in a form whose version is not known
            return fingerprint_tokenizer(self.tokenizer)

        def build(folder: Path) -> None:
            facts = {"fingerprint": fingerprint_tokenizer(self.tokenizer)}
            (folder / "facts.json").write_text(json.dumps(facts))

        entry = self._cache.get("tokenizer", key, build)
        found: str = json.loads((entry.path / "facts.json").read_text())["fingerprint"]
        return found

    def _write_facts(self, folder: Path) -> None:
        loaded = self.pristine()
        facts = WeightFacts(
            fingerprint=loaded.fingerprint,
            model_fingerprint=loaded.model_fingerprint,
            n_linears=len(loaded.architecture.linear_names()),
            n_parameters=loaded.view.n_parameters,
            vocab_size=loaded.architecture.vocab_size,
            warnings=loaded.warnings,
        )
        (folder / "facts.json").write_text(json.dumps(asdict(facts)))
