"""The walk over a model's decoder blocks: a block arrives, is observed, quantized, and released.

Methods that need only the full precision pass (RTN, AWQ, FAQ) read each block's statistics from an
`ActivationStore`, and the model runs on a few traced windows at most. GPTQ reads the quantized stream
once per block; QEP and LoaQ gather anew before each role, since quantizing one changes the next one's
input. Weights are replaced in place by their dequantized stand-ins, in the model's dtype; embeddings and
lm_head are never touched, so tied weights stay tied.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from faqbench.config.experiment import QuantSection
from faqbench.models import Architecture, LoadedModel, Role
from faqbench.quantization.activations import ActivationStore, RoleStatistics
from faqbench.quantization.grid import Grid
from faqbench.quantization.method import RoleInput, quantize_role, scale_statistic, skipped_scale
from faqbench.quantization.reports import BlockReport, LinearReport, QuantizedModel, report_role
from faqbench.quantization.streams import (
    Calibration,
    Streams,
    check_correction,
    corrects,
    uses_streams,
)
from faqbench.stages import Progress

CODE_VERSION = 1  # raise it when the same method would give other weights


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """What stays the same from block to block."""

    architecture: Architecture
    quant: QuantSection
    grids: Mapping[str, Grid]
    store: ActivationStore | None
    streams: Streams | None


@torch.inference_mode()
def quantize_model(
    loaded: LoadedModel,
    quant: QuantSection,
    grids: Mapping[str, Grid],
    store: ActivationStore | None,
    calibration: Calibration | None,
    progress: Progress,
) -> QuantizedModel:
    """Quantize every linear of every decoder block in place.

    Args:
        loaded: the full precision model; its linears' weights are replaced.
        quant: the method.
        grids: of the linears to quantize, by full name, from `assign_grids`.
        store: statistics of the full precision pass; None for methods that read none.
        calibration: the tokens, for methods that read the quantized stream and for tracing.
        progress: one step per block.

    Raises:
        UserError: when a correction does not fit the architecture, or an activation is not finite.
    """
    architecture = loaded.architecture
    check_correction(quant, architecture.roles)
    streams = None
    if calibration is not None and (uses_streams(quant) or quant.trace_windows):
        streams = Streams(loaded, quant, calibration)
    walk = _Walk(architecture=architecture, quant=quant, grids=grids, store=store, streams=streams)
    linears: list[LinearReport] = []
    traced: list[BlockReport] = []
    blocks = architecture.block_modules(loaded.model)
    with progress.stage(f"quantize {quant.name}", len(blocks)) as advance:
        for index, block in enumerate(blocks):
            if streams is not None:
                streams.arrive(block)
            linears += _quantize_block(walk, index, block)
            report = streams.release() if streams is not None else None
            traced += [report] if report is not None else []
            advance()
    skipped = [skipped_scale(role, architecture, quant) for role in architecture.roles]
    return QuantizedModel(
        linears=tuple(linears),
        blocks=tuple(traced),
        skipped_scales=tuple(reason for reason in skipped if reason is not None),
        n_window_cuts=min(quant.preview.window, len(blocks)) if quant.scale == "faq" else 0,
    )


def _quantize_block(walk: _Walk, index: int, block: nn.Module) -> list[LinearReport]:
    quant, streams = walk.quant, walk.streams
    full = walk.store.block(index) if walk.store is not None else {}
    quantized: Mapping[str, RoleStatistics] = {}
    if quant.round == "gptq" and not corrects(quant):
        assert streams is not None
        quantized = streams.observe(walk.architecture.roles)
    reports: list[LinearReport] = []
    for role in walk.architecture.roles:
        start = time.perf_counter()
        linears = _linears(walk, index, block, role)
        if not linears:
            continue
        grids = {name: walk.grids[f"{walk.architecture.blocks}.{index}.{name}"] for name in linears}
        originals = {name: linear.weight.float().clone() for name, linear in linears.items()}
        weights: Mapping[str, Tensor] = originals
        correction_damping = None
        if corrects(quant) and role.name in quant.correction.roles:
            assert streams is not None
            corrected = streams.correct(role, originals)
            weights = {name: c.weight for name, c in corrected.items()}
            correction_damping = max(c.damping for c in corrected.values())
        known = _known(walk, index, role, full.get(role.name), quantized.get(role.name))
        result = quantize_role(role, weights, grids, known, quant)
        for name, linear in linears.items():
            linear.weight.copy_(result.linears[name].dequantize())
        seconds = (time.perf_counter() - start) / len(linears)
        gram = full[role.name].gram if role.name in full else None
        reports += report_role(index, role, result, originals, gram, correction_damping, seconds)
    return reports


def _known(
    walk: _Walk,
    index: int,
    role: Role,
    full: RoleStatistics | None,
    quantized: RoleStatistics | None,
) -> RoleInput:
    """Gather what the stages after the correction need to know of a role's input."""
    quant = walk.quant
    reads = quant.scale != "none" or quant.clip != "none" or quant.round == "gptq"
    if full is None or walk.store is None or not reads:
        return RoleInput()
    search = full
    if corrects(quant):
        # The corrected weight is fitted to the quantized stream: all that follows is measured there.
        assert walk.streams is not None
        search = quantized = walk.streams.observe_role(role)
    end = min(index + 1 + quant.preview.window, walk.store.n_blocks)
    later = [walk.store.mean_abs(j, role.name) for j in range(index + 1, end)]
    return RoleInput(
        search=search,
        hessian=None if quantized is None else quantized.gram,
        statistic=scale_statistic(role, search.mean_abs, later, walk.architecture, quant),
    )


def _linears(walk: _Walk, index: int, block: nn.Module, role: Role) -> dict[str, nn.Linear]:
    """Return the role's linears that are to be quantized."""
    linears = {}
    for name in role.linears:
        if f"{walk.architecture.blocks}.{index}.{name}" in walk.grids:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            linears[name] = linear
    return linears
