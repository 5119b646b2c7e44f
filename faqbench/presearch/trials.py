"""One candidate on one calibration draw: a cached stage.

Each trial quantizes the full precision model, measures the weights' error in weight space, and scores the
selection text with the view that has the quantized linears in the place of its own.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faqbench.calibration import CalibrationSet
from faqbench.config import Experiment
from faqbench.config.identity import calibration_identity, quant_identity
from faqbench.evaluation import SCORER_VERSION, score_tokens
from faqbench.hardware import resolve_device
from faqbench.models import LoadedModel, budget_of, load_model
from faqbench.pipeline.calibrating import calibration_set, selection_set
from faqbench.pipeline.keys import computed_on
from faqbench.pipeline.statistics import activation_store
from faqbench.presearch.candidates import Candidate
from faqbench.quantization import (
    CODE_VERSION,
    ActivationStore,
    Calibration,
    QuantizedLinear,
    QuantizedTensors,
    assign_grids,
    quantize_inputs,
    quantize_model,
    reads_store,
)
from faqbench.quantization.method import relative_errors
from faqbench.stages import Progress, StageCache

TRIAL_VERSION = 1  # raise it when the same trial would give other numbers

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """What one candidate gave on one draw.

    Attributes:
        windows: mean negative log-likelihood per window of selection text [n_windows], nats.
        output_error: mean over linears of the relative squared output error on selection text.
        error_of: the same by role.
        seconds: that it took when it was computed.
        cached: whether it was there before.
    """

    windows: Array
    output_error: float
    error_of: Mapping[str, float]
    seconds: float
    cached: bool

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of the selection text."""
        return float(self.windows.mean())


class Bench:
    """Everything that the trials of one search share."""

    def __init__(self, experiment: Experiment, cache: StageCache, progress: Progress) -> None:
        self._experiment = experiment
        self._cache = cache
        self._progress = progress
        self._draws: dict[int, CalibrationSet] = {}
        device = resolve_device(experiment.device)
        dtype = getattr(torch, experiment.calibration.dtype)
        budget = budget_of(experiment.memory, device)
        self._loaded: LoadedModel = load_model(
            experiment.model, dtype, device, progress, budget=budget
        )
        self._grids = assign_grids(self._loaded.architecture, experiment.quant)
        self.selection = selection_set(experiment, self._loaded.tokenizer, cache, progress)

    def draw_seed(self, draw: int) -> int:
        """Return the seed of a draw: the experiment's own seed for the first, then the next ones."""
        return self._experiment.calibration.seed + draw

    def trial(self, candidate: Candidate, draw: int) -> Trial:
        """Return a candidate's result on a draw, computing it when it is not known yet.

        Raises:
            UserError: for anything that the user can mend.
        """
        experiment = self._with(draw, candidate)
        drawn = self._drawn(draw)

        def build(folder: Path) -> None:
            start = time.perf_counter()
            errors, windows = self._run(experiment, drawn, f"{candidate.name}, draw {draw}")
            np.save(folder / "windows.npy", windows, allow_pickle=False)
            facts = {"error_of": errors, "seconds": time.perf_counter() - start}
            (folder / "facts.json").write_text(json.dumps(facts))

        settings = calibration_identity(experiment)
        key = {
            "version": TRIAL_VERSION,
            "scorer_version": SCORER_VERSION,
            "quantization_version": CODE_VERSION,
            "model": self._loaded.model_fingerprint,
            "quant": quant_identity(experiment),
            "calibration": drawn.fingerprint,
            "calibration_settings": {k: settings[k] for k in ("tokens", "dtype", "batch_size")},
            "selection": self.selection.fingerprint,
            "dtype": experiment.dtype,
            "batch_tokens": experiment.evaluation.batch_tokens,
            **computed_on(self._loaded.view.device.type),
        }
        entry = self._cache.get("presearch", key, build)
        facts = json.loads((entry.path / "facts.json").read_text())
        errors = facts["error_of"]
        return Trial(
            windows=np.load(entry.path / "windows.npy", allow_pickle=False),
            output_error=sum(errors.values()) / len(errors),
            error_of=errors,
            seconds=facts["seconds"],
            cached=entry.cached,
        )

    def _with(self, draw: int, candidate: Candidate) -> Experiment:
        experiment = self._experiment
        calibration = experiment.calibration.model_copy(update={"seed": self.draw_seed(draw)})
        quant = candidate.quant(experiment.quant)
        return experiment.model_copy(update={"calibration": calibration, "quant": quant})

    def _drawn(self, draw: int) -> CalibrationSet:
        if draw not in self._draws:
            calibration = self._experiment.calibration
            seeded = calibration.model_copy(update={"seed": self.draw_seed(draw)})
            experiment = self._experiment.model_copy(update={"calibration": seeded})
            tokenizer = self._loaded.tokenizer
            found, _ = calibration_set(experiment, tokenizer, self._cache, self._progress)
            self._draws[draw] = found
        return self._draws[draw]

    def _store(self, tokens: CalibrationSet) -> ActivationStore:
        store, _ = activation_store(
            self._experiment, self._loaded, tokens, self._cache, self._progress
        )
        return store

    @torch.no_grad()
    def _run(
        self, experiment: Experiment, drawn: CalibrationSet, title: str
    ) -> tuple[dict[str, float], Array]:
        """Return a trial's output error by role, and its windows' mean negative log-likelihoods."""
        held_out = self._store(self.selection)
        store = self._store(drawn) if reads_store(experiment.quant) else None
        settings = experiment.calibration
        calibration = Calibration(
            tokens=drawn.tokens, batch_size=settings.batch_size, select=settings.tokens
        )
        linears: dict[str, QuantizedLinear] = {}
        quantize_model(
            self._loaded,
            experiment.quant,
            self._grids,
            store,
            calibration,
            self._progress,
            keep=linears.__setitem__,
        )
        view = self._loaded.view
        dtypes = (view.dtype, getattr(torch, self._experiment.dtype))
        scored = view.view(
            tensors=QuantizedTensors(view.tensors, linears),
            dtypes=dtypes,
            prepare=partial(quantize_inputs, linears, experiment.quant.activations),
        )
        budget = self._experiment.evaluation.batch_tokens
        scores = score_tokens(
            scored.fill().module,
            self.selection.tokens,
            budget,
            self._progress,
            title,
            view=scored,
        )
        return self._errors(held_out, linears), scores.nll.mean(axis=1, dtype=np.float64)

    def _errors(
        self, held_out: ActivationStore, linears: Mapping[str, QuantizedLinear]
    ) -> dict[str, float]:
        """Return the mean over a role's linears of the relative output error on selection text."""
        architecture, view = self._loaded.architecture, self._loaded.view
        found: dict[str, list[float]] = defaultdict(list)
        for index in range(architecture.n_blocks):
            statistics = held_out.block(index)
            for role in architecture.roles:
                for linear in role.linears:
                    name = f"{architecture.blocks}.{index}.{linear}"
                    if name in linears:
                        weight, gram = view.weight(f"{name}.weight"), statistics[role.name].gram
                        now = linears[name].dequantize().to(weight.dtype)
                        found[role.name] += relative_errors(weight.float(), [now.float()], gram)
        return {role: sum(values) / len(values) for role, values in found.items()}
