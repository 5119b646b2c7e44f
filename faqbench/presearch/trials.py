"""The candidates, one of them on one calibration draw (a cached stage), and the evidence for the choice.

Tried is every combination of the declared grids, each once, and AWQ beside them. A trial quantizes the full
precision model, measures the weights' error in weight space, and scores the selection text with the view
that has the quantized linears in the place of its own.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faqbench.calibration import CalibrationSet
from faqbench.config import Experiment
from faqbench.config.experiment import GridSection, PreviewSection, QuantSection
from faqbench.config.identity import calibration_identity, quant_identity
from faqbench.evaluation import SCORER_VERSION, score_tokens
from faqbench.hardware import resolve_device
from faqbench.models import LoadedModel, budget_of, load_model
from faqbench.pipeline.calibrating import activation_store, calibration_set, selection_set
from faqbench.pipeline.keys import computed_on
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
from faqbench.statistics import aggregate_draws, exp, percent_of_log

AWQ = "awq"
TRIAL_VERSION = 1  # raise it when the same trial would give other numbers
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One choice of FAQ's options.

    Attributes:
        name: the options in words, `awq` for the choice that previews nothing.
        preview: the options.
    """

    name: str
    preview: PreviewSection

    def quant(self, quant: QuantSection) -> QuantSection:
        """Return the method with this candidate's preview."""
        return quant.model_copy(update={"preview": self.preview, "trace_windows": 0})


def candidates(experiment: Experiment) -> list[Candidate]:
    """Return the candidates of an experiment, AWQ first.

    A choice whose window is 0 or whose gamma is 1 is AWQ, and weights do not matter for a window of one.
    """
    plain = experiment.quant.preview
    nothing = plain.model_copy(update={"window": 0, "gamma": 1.0, "alpha": None})
    by_name = {AWQ: Candidate(name=AWQ, preview=nothing)}
    for grid in experiment.presearch.grids:
        for values in _combinations(grid):
            preview = plain.model_copy(update=values)
            name = _name(preview)
            by_name.setdefault(name, Candidate(name=name, preview=preview))
    return list(by_name.values())


def _combinations(grid: GridSection) -> list[dict[str, object]]:
    names, values = zip(*((name, tuple(value)) for name, value in grid), strict=True)
    return [dict(zip(names, chosen, strict=True)) for chosen in product(*values)]


def _name(preview: PreviewSection) -> str:
    if preview.window == 0 or preview.gamma == 1.0:
        return AWQ
    words = [f"window={preview.window}", f"gamma={preview.gamma:g}", f"roles={preview.roles}"]
    usual: Sequence[tuple[str, str]] = (
        ("source", "same_role"),
        ("stream", "full"),
        ("norm", "none"),
        ("fuse", "convex"),
    )
    words += [f"{key}={getattr(preview, key)}" for key, value in usual if getattr(preview, key) != value]
    if preview.window > 1 and preview.weights != "uniform":
        words.append(f"weights={preview.weights}")
    return " ".join(words)


@dataclass(frozen=True, kw_only=True)
class TrialEvidence:
    """What is known of one finalist, over all draws.

    Attributes:
        name: of the candidate.
        perplexity: exp of the mean negative log-likelihood of the selection text.
        log_ratio: of its perplexity to AWQ's, paired over draws and windows; 0 for AWQ itself.
        low: lower end of the ratio's 95 % interval, as a logarithm.
        high: its upper end.
        output_error: mean relative squared output error on selection text over linears and draws.
        tied: whether one standard error cannot tell it from the best.
    """

    name: str
    perplexity: float
    log_ratio: float
    low: float
    high: float
    output_error: float
    tied: bool


def weigh(
    windows: Mapping[str, Array], output_errors: Mapping[str, Sequence[float]]
) -> list[TrialEvidence]:
    """Return the finalists' evidence, the chosen one first and AWQ last.

    Args:
        windows: by candidate, AWQ included, mean negative log-likelihood [n_draws, n_windows] in nats.
        output_errors: by candidate, one per draw.

    The chosen one has the smallest output error among those whose perplexity is within one standard
    error of the best, the standard error being that of their paired difference from the best.
    """
    rivals = [name for name in windows if name != AWQ]
    best = min(rivals, key=lambda name: float(windows[name].mean()))
    evidence = []
    for name, nll in windows.items():
        against_awq = aggregate_draws(nll - windows[AWQ])
        from_best = aggregate_draws(nll - windows[best])
        evidence.append(
            TrialEvidence(
                name=name,
                perplexity=exp(float(nll.mean())),
                log_ratio=against_awq.mean,
                low=against_awq.low,
                high=against_awq.high,
                output_error=float(np.mean(output_errors[name])),
                tied=name != AWQ and from_best.mean <= from_best.stderr,
            )
        )
    return sorted(
        evidence,
        key=lambda e: (e.name == AWQ, not e.tied, e.output_error if e.tied else e.log_ratio, e.log_ratio),
    )


def verdict(chosen: TrialEvidence) -> str:
    """Return in words what the chosen candidate is against AWQ on the selection text."""
    percent = [percent_of_log(float(x)) for x in (chosen.log_ratio, chosen.low, chosen.high)]
    numbers = f"{percent[0]:+.2f} %, 95 % interval {percent[1]:+.2f} to {percent[2]:+.2f}"
    if chosen.high < 0:
        return f"better than AWQ on the selection text: perplexity {numbers}"
    if chosen.low > 0:
        return f"worse than AWQ on the selection text: perplexity {numbers}"
    return f"cannot be told from AWQ on the selection text: perplexity {numbers}"


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
        self._loaded: LoadedModel = load_model(experiment.model, dtype, device, progress, budget=budget)
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
            drawn, _ = calibration_set(experiment, tokenizer, self._cache, self._progress)
            self._draws[draw] = drawn
        return self._draws[draw]

    def _store(self, tokens: CalibrationSet) -> ActivationStore:
        store, _ = activation_store(self._experiment, self._loaded, tokens, self._cache, self._progress)
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
            scored.fill().module, self.selection.tokens, budget, self._progress, title, view=scored
        )
        return self._errors(held_out, linears), scores.nll.mean(axis=1, dtype=np.float64)

    def _errors(
        self, held_out: ActivationStore, linears: Mapping[str, QuantizedLinear]
    ) -> dict[str, float]:
        """Return the mean over a role's linears of the relative output error on selection text."""
        architecture, view = self._loaded.architecture, self._loaded.view
        errors: dict[str, list[float]] = defaultdict(list)
        for index in range(architecture.n_blocks):
            statistics = held_out.block(index)
            for role in architecture.roles:
                for linear in role.linears:
                    name = f"{architecture.blocks}.{index}.{linear}"
                    if name in linears:
                        weight, gram = view.weight(f"{name}.weight"), statistics[role.name].gram
                        now = linears[name].dequantize().to(weight.dtype)
                        errors[role.name] += relative_errors(weight.float(), [now.float()], gram)
        return {role: sum(values) / len(values) for role, values in errors.items()}
