"""The walk over a model's decoder blocks: a block arrives, is quantized, and its weights replaced.

Methods that need only the full precision pass (RTN, AWQ, FAQ) never run the model here: they read each
block's statistics from an `ActivationStore`. Weights are replaced in place by their dequantized
stand-ins, in the model's dtype; embeddings and lm_head are never touched, so tied weights stay tied.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from faqbench.config import UserError
from faqbench.config.experiment import QuantSection
from faqbench.models import Architecture, LoadedModel, Role
from faqbench.quantization.activations import ActivationStore
from faqbench.quantization.grid import Grid
from faqbench.quantization.method import (
    RoleResult,
    nearest_error,
    quantize_role,
    relative_error,
    scale_statistic,
    skipped_scale,
)
from faqbench.stages import Progress

CODE_VERSION = 1  # raise it when the same method would give other weights


@dataclass(frozen=True, kw_only=True)
class LinearReport:
    """What happened to one linear; a row of `layers.parquet`.

    Attributes:
        block: index of the decoder block.
        role: qkv, o, gate_up or down.
        linear: name relative to the block.
        bits: of its codes.
        group_size: input channels per scale.
        alpha: the exponent of the scale; None when unscaled.
        clipped_frac: share of weights outside their group's limit.
        scale_range: largest over smallest input scale; 1 when unscaled.
        nearest_error: relative squared output error of plain rounding on the same grid.
        relative_error: relative squared output error of the result, on the calibration tokens.
        storage_bits: of codes, scales and zero points.
        n_weights: out_features times in_features.
        seconds: of the linear's role, shared equally among its linears.
    """

    block: int
    role: str
    linear: str
    bits: int
    group_size: int
    alpha: float | None
    clipped_frac: float
    scale_range: float
    nearest_error: float | None
    relative_error: float | None
    storage_bits: int
    n_weights: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """The outcome of a walk.

    Attributes:
        reports: one per quantized linear.
        skipped_scales: scale mappings that were ruled out, with the reason, once per role.
        window_cuts: how many blocks had fewer later blocks than FAQ's window asks for.
    """

    reports: tuple[LinearReport, ...]
    skipped_scales: tuple[str, ...]
    window_cuts: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of codes, scales and zero points per weight of the quantized linears."""
        return self.storage_bits / sum(r.n_weights for r in self.reports)

    @property
    def storage_bits(self) -> int:
        """Bits of all quantized linears."""
        return sum(r.storage_bits for r in self.reports)


@torch.inference_mode()
def quantize_model(
    loaded: LoadedModel,
    quant: QuantSection,
    grids: Mapping[str, Grid],
    store: ActivationStore | None,
    progress: Progress,
) -> QuantizedModel:
    """Quantize every linear of every decoder block in place.

    Args:
        loaded: the full precision model; its linears' weights are replaced.
        quant: the method.
        grids: of the linears to quantize, from `assign_grids`.
        store: statistics of the full precision pass; None for methods that read none.
        progress: one step per block.
    """
    architecture = loaded.architecture
    reports: list[LinearReport] = []
    blocks = architecture.block_modules(loaded.model)
    with progress.stage(f"quantize {quant.name}", len(blocks)) as advance:
        for index, block in enumerate(blocks):
            reports += _quantize_block(index, block, architecture, quant, grids, store)
            advance()
    skipped = [skipped_scale(role, architecture, quant) for role in architecture.roles]
    cuts = min(quant.preview.window, len(blocks)) if quant.scale == "faq" else 0
    return QuantizedModel(
        reports=tuple(reports),
        skipped_scales=tuple(reason for reason in skipped if reason is not None),
        window_cuts=cuts,
    )


def assign_grids(
    model: nn.Module, architecture: Architecture, quant: QuantSection
) -> dict[str, Grid]:
    """Return the grid of every linear that is to be quantized, by full name.

    Raises:
        UserError: when a pattern matches no linear, two overrides match the same one, or a group size
            does not divide its in_features.
    """
    if quant.round == "none":
        return {}
    names = architecture.linear_names()
    for pattern in (*quant.skip, *(o.pattern for o in quant.overrides)):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"Pattern '{pattern}' matches no linear; they look like {names[0]}.")
    grids = {}
    for name in names:
        if any(fnmatchcase(name, pattern) for pattern in quant.skip):
            continue
        matches = [o for o in quant.overrides if fnmatchcase(name, o.pattern)]
        if len(matches) > 1:
            raise UserError(
                f"quant.overrides '{matches[0].pattern}' and '{matches[1].pattern}' both match {name}."
            )
        bits, group_size = quant.bits, quant.group_size
        if matches:
            bits = matches[0].bits or bits
            group_size = matches[0].group_size or group_size
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        grids[name] = Grid(bits=bits, group_size=group_size, symmetric=quant.symmetric)
        grids[name].check(name, linear.in_features)
    return grids


def _quantize_block(
    index: int,
    block: nn.Module,
    architecture: Architecture,
    quant: QuantSection,
    grids: Mapping[str, Grid],
    store: ActivationStore | None,
) -> list[LinearReport]:
    statistics = store.block(index) if store else {}
    reports: list[LinearReport] = []
    for role in architecture.roles:
        start = time.perf_counter()
        linears = {
            name: _linear(block, name)
            for name in role.linears
            if f"{architecture.blocks}.{index}.{name}" in grids
        }
        if not linears:
            continue
        role_grids = {name: grids[f"{architecture.blocks}.{index}.{name}"] for name in linears}
        weights = {name: linear.weight.float() for name, linear in linears.items()}
        statistic = None
        if store is not None:
            later = [
                store.mean_abs(j, role.name)
                for j in range(index + 1, min(index + 1 + quant.preview.window, store.n_blocks))
            ]
            current = statistics[role.name].mean_abs
            statistic = scale_statistic(role, current, later, architecture, quant)
        known = statistics.get(role.name)
        result = quantize_role(role, weights, role_grids, known, statistic, quant)
        seconds = (time.perf_counter() - start) / len(linears)
        gram = known.gram if known else None
        for name, linear in linears.items():
            stand_in = result.linears[name].dequantize()
            reports.append(
                _report(index, role, name, result, weights[name], stand_in, gram, seconds)
            )
            linear.weight.copy_(stand_in)
    return reports


def _report(
    index: int,
    role: Role,
    name: str,
    result: RoleResult,
    weight: Tensor,
    stand_in: Tensor,
    gram: Tensor | None,
    seconds: float,
) -> LinearReport:
    quantized = result.linears[name]
    scale = quantized.input_scale
    return LinearReport(
        block=index,
        role=role.name,
        linear=name,
        bits=quantized.grid.bits,
        group_size=quantized.grid.group_size,
        alpha=result.alpha,
        clipped_frac=result.clipped_frac[name],
        scale_range=1.0 if scale is None else float(scale.max() / scale.min()),
        nearest_error=None if gram is None else nearest_error(weight, quantized.grid, gram),
        relative_error=None if gram is None else relative_error(weight, stand_in, gram),
        storage_bits=quantized.storage_bits(),
        n_weights=weight.numel(),
        seconds=seconds,
    )


def _linear(block: nn.Module, name: str) -> nn.Linear:
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear
