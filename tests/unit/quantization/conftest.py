"""Toy models with uneven channels, their statistics, and one call that quantizes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from faqbench.config import Experiment
from faqbench.models import LoadedModel, load_model
from faqbench.models.tensors import Held
from faqbench.quantization import (
    ActivationStore,
    Calibration,
    LinearReport,
    QuantizedLinear,
    QuantizedModel,
    assign_grids,
    observe,
    quantize_model,
)
from faqbench.stages import PlainProgress

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_tensors(one_thread: None) -> None:
    """All tensors here are small."""


@dataclass(frozen=True)
class Outcome:
    """What became of a model: all weights before and after, their codes, and the engine's report."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    result: QuantizedModel
    loaded: LoadedModel
    linears: dict[str, QuantizedLinear]

    def report(self, linear: str, block: int = 0) -> LinearReport:
        return next(r for r in self.result.linears if (r.block, r.linear) == (block, linear))

    def same_as(self, other: Outcome, contains: str = "") -> bool:
        names = [name for name in self.after if contains in name]
        assert names
        return all(torch.equal(self.after[name], other.after[name]) for name in names)


@pytest.fixture(scope="session")
def tokens() -> Tensor:
    return torch.randint(0, 257, (5, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def load(compose: Callable[..., Experiment]) -> Callable[..., LoadedModel]:
    """Load a fresh tiny model whose norms give its channels very different sizes."""

    def make(family: str = "llama", dtype: torch.dtype = torch.float32, **random: Any) -> LoadedModel:
        section = compose(f"model=tiny-{family}").model
        section = section.model_copy(update={"random": {**(section.random or {}), **random}})
        loaded = load_model(section, dtype, CPU, PlainProgress())
        generator = torch.Generator().manual_seed(1)
        for name, parameter in loaded.model.named_parameters():
            if name.endswith("layernorm.weight"):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.exp() - 1)
            elif name.endswith("proj.weight"):
                parameter.mul_(4)
        return loaded

    return make


@pytest.fixture
def observed(tmp_path_factory: pytest.TempPathFactory, tokens: Tensor) -> Callable[..., ActivationStore]:
    """Take the statistics of a model on the toy tokens."""

    def make(loaded: LoadedModel, *, select: Any = "all", batch_size: int = 2) -> ActivationStore:
        folder: Path = tmp_path_factory.mktemp("statistics")
        observe(
            loaded, tokens, batch_size=batch_size, select=select, folder=folder, progress=PlainProgress()
        )
        return ActivationStore(folder, next(loaded.model.parameters()).device)

    return make


def with_weights(loaded: LoadedModel, weights: dict[str, Tensor]) -> LoadedModel:
    """Return the model with other weights for some of its linears."""
    state = {**loaded.model.state_dict(), **{f"{name}.weight": w for name, w in weights.items()}}
    view = loaded.view.view(tensors=Held(state), dtypes=(next(iter(weights.values())).dtype,))
    return replace(loaded, view=view)


@pytest.fixture
def quantized(
    compose: Callable[..., Experiment],
    load: Callable[..., LoadedModel],
    observed: Callable[..., ActivationStore],
    tokens: Tensor,
) -> Callable[..., Outcome]:
    """Quantize a fresh model, or the one given, by a preset and overrides."""

    def make(
        preset: str, *overrides: str, loaded: LoadedModel | None = None, means_only: bool = False
    ) -> Outcome:
        loaded = loaded or load()
        experiment = compose("model=tiny-llama", f"quant={preset}", *overrides)
        names = loaded.architecture.linear_names()

        def weight(name: str) -> Tensor:
            found: Tensor = loaded.model.get_submodule(name).weight
            return found.clone()

        before = {name: weight(name) for name in names}
        grids = assign_grids(loaded.architecture, experiment.quant)
        select = experiment.calibration.tokens
        store = observed(loaded, select=select) if experiment.needs_calibration else None
        if store is not None and means_only:
            for path in store.folder.iterdir():
                if path.name != "mean_abs.safetensors":
                    path.unlink()
        calibration = Calibration(tokens=tokens, batch_size=2, select=select)
        linears: dict[str, QuantizedLinear] = {}
        result = quantize_model(
            loaded, experiment.quant, grids, store, calibration, PlainProgress(), keep=linears.__setitem__
        )
        assert all(torch.equal(before[name], weight(name)) for name in names)
        after = before | {n: q.dequantize().to(before[n].dtype) for n, q in linears.items()}
        return Outcome(before, after, result, with_weights(loaded, after), linears)

    return make
