"""One role of one decoder block through its stages: scale, clip, round.

The linears of a role share an input, hence one scale. The scale search sees the role's unscaled weights;
the clip search and the rounding see the scaled ones. Correction comes before all of them, and needs the
model's two streams: see `engine.py`. The function that does a stage's work is named by the value's row in
`config/method.py`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import Tensor

from faqbench.config import UserError
from faqbench.config.experiment import QuantSection
from faqbench.config.method import Reads, StageValue, method_of
from faqbench.hardware import has_fast_bfloat16
from faqbench.models import Architecture, Role
from faqbench.quantization.activation_grid import input_range
from faqbench.quantization.activations import RoleStatistics
from faqbench.quantization.grid import (
    Grid,
    GroupParameters,
    QuantizedLinear,
    Rounded,
    RoundInput,
    pack_codes,
)
from faqbench.quantization.module_loss import ModuleObjective, search_module_scale
from faqbench.quantization.preview import Later
from faqbench.quantization.reproducible import halve, row_chunks, row_quadratic_forms
from faqbench.quantization.scale import ScaleChoice, alpha_grid, search_scale


@dataclass(frozen=True, kw_only=True)
class RoleInput:
    """What the stages know of a role's input; a stage that is off leaves its part None.

    Attributes:
        search: statistics that the scale and clip searches measure their loss with.
        hessian: [in_features, in_features] on the quantized stream, for clips and roundings that read it.
        cross: `RoundInput.cross` of the unscaled input, for roundings that read both streams.
        importance: [in_features] that the scales are made of; None leaves the role unscaled.
        objective: what the scale search measures instead of the Gram loss; None for the Gram loss.
    """

    search: RoleStatistics | None = None
    hessian: Tensor | None = None
    cross: Tensor | None = None
    importance: Tensor | None = None
    objective: ModuleObjective | None = None


@dataclass(frozen=True, kw_only=True)
class RoleResult:
    """A quantized role.

    Attributes:
        linears: by name relative to the block.
        alpha: the chosen exponent; None when nothing was scaled.
        limits: by linear, [out_features, n_groups] that the clip search chose, infinite for rows that
            it leaves alone; None for a linear that was not searched.
        clipped_frac: by linear, the share of weights that lie outside their group's limit.
        rounds_to_nearest: whether each weight went to the nearest code by itself.
        damping: the rounding's, relative to the mean of the Hessian's diagonal, by linear; none for a
            rounding that factors no Hessian.
        condition: of that damped Hessian, by linear.
    """

    linears: Mapping[str, QuantizedLinear]
    alpha: float | None
    limits: Mapping[str, Tensor | None]
    clipped_frac: Mapping[str, float]
    rounds_to_nearest: bool
    damping: Mapping[str, float] = field(default_factory=dict)
    condition: Mapping[str, float] = field(default_factory=dict)


def quantize_role(
    role: Role,
    weights: Mapping[str, Tensor],
    grids: Mapping[str, Grid],
    known: RoleInput,
    quant: QuantSection,
) -> RoleResult:
    """Quantize the linears of one role.

    Args:
        role: the role.
        weights: float32 [out_features, in_features] by linear name.
        grids: the grid of each linear.
        known: what is known of the role's input.
        quant: the method.
    """
    choice = _choose_scale(role, weights, grids, known, quant)
    limits = {
        name: _choose_limit(role, name, weight, grids[name], choice, known, quant)
        for name, weight in weights.items()
    }
    clipped = {n: _clipped_frac(w, choice.input_scale, limits[n]) for n, w in weights.items()}
    rounded = _round(weights, grids, choice.input_scale, limits, known, quant)
    span = static_range(role, choice.input_scale, known.search, quant)
    return RoleResult(
        linears={
            n: replace(pack_codes(r.codes, r.parameters, grids[n], choice.input_scale), input_range=span)
            for n, r in rounded.items()
        },
        alpha=choice.alpha,
        limits=limits,
        clipped_frac=clipped,
        rounds_to_nearest=method_of(quant).rounds_to_nearest,
        damping={n: r.damping for n, r in rounded.items() if r.damping is not None},
        condition={n: r.condition for n, r in rounded.items() if r.condition is not None},
    )


@cache
def call_of(value: StageValue) -> Callable[..., Any]:
    """Return the function, or the class, that does the work of a stage's value."""
    assert value.call is not None, f"{value.name} is idle"
    module, _, name = value.call.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _choose_scale(
    role: Role,
    weights: Mapping[str, Tensor],
    grids: Mapping[str, Grid],
    known: RoleInput,
    quant: QuantSection,
) -> ScaleChoice:
    """Return the input scale of a role by the method's own way: none, in closed form, or a search."""
    scale = method_of(quant)["scale"]
    if Reads.EXTREMES in scale.reads and role.residual:
        assert known.search is not None
        input_scale = call_of(scale)(known.search.largest, list(weights.values()), quant)
        return ScaleChoice(alpha=None, input_scale=input_scale)
    if known.importance is None:
        return ScaleChoice(alpha=None, input_scale=None)
    alphas = _alphas(quant)
    if known.objective is not None:
        return search_module_scale(known.objective, weights, grids, known.importance, alphas)
    assert known.search is not None
    return search_scale(
        list(weights.values()), list(grids.values()), known.importance, known.search.gram, alphas
    )


def static_range(
    role: Role, input_scale: Tensor | None, known: RoleStatistics | None, quant: QuantSection
) -> Tensor | None:
    """Return the range of the role's quantized input; None where it has none of its own."""
    is_static = Reads.EXTREMES in method_of(quant).activations.reads
    if not is_static or role.name not in quant.activations.targets:
        return None
    assert known is not None
    return input_range(known.low, known.high, input_scale)


def _choose_limit(
    role: Role,
    name: str,
    weight: Tensor,
    grid: Grid,
    choice: ScaleChoice,
    known: RoleInput,
    quant: QuantSection,
) -> Tensor | None:
    """Return the limits of one linear's groups, infinite for rows that are not to be clipped."""
    clip = method_of(quant)["clip"]
    unclipped = [rows.cut for rows in role.unclipped if rows.linear == name and clip.spares_attention]
    if clip.is_idle or slice(0, None) in unclipped:
        return None
    searched = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    for cut in unclipped:
        searched[cut] = False
    gram, scale = None, choice.input_scale
    if Reads.GRAM in clip.reads:
        assert known.search is not None
        gram = known.search.gram
    elif Reads.HESSIAN in clip.reads:
        assert known.hessian is not None
        gram = known.hessian
    chosen: Tensor = call_of(clip)(weight[searched], gram, grid, scale, quant)
    limit = chosen.new_full((len(weight), chosen.shape[1]), torch.inf)
    limit[searched] = chosen
    return limit


def _round(
    weights: Mapping[str, Tensor],
    grids: Mapping[str, Grid],
    input_scale: Tensor | None,
    limits: Mapping[str, Tensor | None],
    known: RoleInput,
    quant: QuantSection,
) -> dict[str, Rounded]:
    """Round linears of the same grid together: they share their input, and rows are independent."""
    rounding = method_of(quant)["round"]
    call, seen = call_of(rounding), _round_input(known, input_scale, rounding.reads)
    rounded: dict[str, Rounded] = {}
    for grid in dict.fromkeys(grids.values()):
        names = [n for n in weights if grids[n] == grid]
        scaled = [weights[n] if input_scale is None else weights[n] * input_scale for n in names]
        limit = _stacked_limits([limits[n] for n in names], [weights[n] for n in names], grid)
        result: Rounded = call(torch.cat(scaled), seen, grid, quant, limit)
        sizes = [len(weights[n]) for n in names]
        zeros = result.parameters.zero_point
        parts = zip(
            names,
            torch.split(result.codes, sizes),
            torch.split(result.parameters.scale, sizes),
            torch.split(zeros, sizes) if zeros is not None else [None] * len(names),
            strict=True,
        )
        for name, codes, scale, zero in parts:
            parameters = GroupParameters(scale=scale.clone(), zero_point=zero)
            rounded[name] = replace(result, codes=codes, parameters=parameters)
    return {name: rounded[name] for name in weights}


def _round_input(known: RoleInput, input_scale: Tensor | None, reads: frozenset[Reads]) -> RoundInput:
    """Return what a rounding reads of the scaled input."""

    def scaled(gram: Tensor) -> Tensor:
        return gram if input_scale is None else gram / torch.outer(input_scale, input_scale)

    gram = hessian = cross = None
    if Reads.GRAM in reads:
        assert known.search is not None
        gram = scaled(known.search.gram)
    if Reads.HESSIAN in reads:
        assert known.hessian is not None
        hessian = scaled(known.hessian)
    if Reads.BOTH_STREAMS in reads:
        assert known.cross is not None
        cross = scaled(known.cross)
    return RoundInput(gram=gram, hessian=hessian, cross=cross)


def scale_importance(
    role: Role, current: Tensor, later: Later, architecture: Architecture, quant: QuantSection
) -> Tensor | None:
    """Return the vector [in_features] that a role's scales are made of, or None to leave it unscaled.

    Args:
        role: the role.
        current: [in_features], mean|x| of this block.
        later: what the preview reads of what comes after the role.
        architecture: tells whether o's scale has linear rows to fold into.
        quant: the method.
    """
    scale = method_of(quant)["scale"]
    if not searches_scale(quant) or skipped_scale(role, architecture, quant) is not None:
        return None
    importance: Tensor = call_of(scale)(current, later, role, quant)
    if role.name == "o" and architecture.is_grouped_query:
        return _shared_by_kv_head(importance, architecture)
    return importance


def skipped_scale(role: Role, architecture: Architecture, quant: QuantSection) -> str | None:
    """Say why a role gets no scale, or return None when it gets one."""
    if not searches_scale(quant) or role.name != "o" or not architecture.is_grouped_query:
        return None
    if quant.search.gqa_scale == "repeat":
        return None
    return (
        f"{role.source} -> {role.linears[0]}: {architecture.n_heads} query heads share "
        f"{architecture.n_kv_heads} value heads (quant.search.gqa_scale=repeat scales them)"
    )


def relative_errors(weight: Tensor, stand_ins: Sequence[Tensor], gram: Tensor) -> list[float]:
    """Return each stand-in's squared output error over the squared output, tr(E G E') / tr(W G W').

    A diagnostic: the products are taken in bfloat16 where that is fast, good to about 0.1 %.
    """
    half = halve(gram, torch.bfloat16 if has_fast_bfloat16(gram.device) else torch.float32)
    totals = torch.zeros(1 + len(stand_ins), dtype=torch.float64, device=gram.device)
    for original, *others in zip(*map(row_chunks, (weight, *stand_ins)), strict=True):
        measured = torch.cat([original, *(other - original for other in others)])
        totals += row_quadratic_forms(measured, half).view(len(totals), -1).sum(dim=1)
    size, *errors = totals.tolist()
    return [error / size if size > 0 else error for error in errors]


def searches_scale(quant: QuantSection) -> bool:
    """Say whether scales are powers of an importance, and not in closed form or none."""
    return Reads.MEANS in method_of(quant)["scale"].reads


def fixed_alpha(quant: QuantSection) -> float | None:
    """Return the exponent that a method takes without a search; None when it searches one."""
    return quant.preview.alpha if method_of(quant).owns("preview") else None


def _alphas(quant: QuantSection) -> list[float]:
    fixed = fixed_alpha(quant)
    return alpha_grid(quant.search.n_grid) if fixed is None else [fixed]


def _shared_by_kv_head(importance: Tensor, architecture: Architecture) -> Tensor:
    """Average o's importance over the query heads that share a value head, and repeat it for each."""
    shape = (architecture.n_kv_heads, -1, architecture.head_dim)
    heads = importance.view(shape)
    return heads.mean(dim=1, keepdim=True).expand_as(heads).reshape(-1)


def _stacked_limits(
    limits: Sequence[Tensor | None], weights: Sequence[Tensor], grid: Grid
) -> Tensor | None:
    """Stack the limits of several linears; one without limits gets infinite ones."""
    if all(limit is None for limit in limits):
        return None
    rows = []
    for limit, weight in zip(limits, weights, strict=True):
        n_groups = weight.shape[1] // grid.group_width(weight.shape[1])
        rows.append(weight.new_full((len(weight), n_groups), torch.inf) if limit is None else limit)
    return torch.cat(rows)


def _clipped_frac(weight: Tensor, input_scale: Tensor | None, limit: Tensor | None) -> float:
    if limit is None:
        return 0.0
    scaled = weight if input_scale is None else weight * input_scale
    outside = scaled.view(*limit.shape, -1).abs() > limit.unsqueeze(-1)
    return int(outside.sum()) / outside.numel()


def assign_grids(architecture: Architecture, quant: QuantSection) -> dict[str, Grid]:
    """Return the grid of every linear that is to be quantized, by full name.

    Raises:
        UserError: when a pattern matches no linear, two overrides match the same one, or a group size
            does not divide its in_features.
    """
    if not method_of(quant).quantizes:
        return {}
    shapes = architecture.linear_shapes()
    names = list(shapes)
    for pattern in (*quant.skip, *(o.pattern for o in quant.overrides)):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"Pattern '{pattern}' matches no linear; they look like {names[0]}.")
    grids = {}
    for name in names:
        if any(fnmatchcase(name, pattern) for pattern in quant.skip):
            continue
        grids[name] = _grid(name, quant)
        grids[name].check(name, shapes[name][1])
    if not grids:
        raise UserError("quant.skip leaves no linear to quantize; quant=fp is the baseline.")
    return grids


def _grid(name: str, quant: QuantSection) -> Grid:
    matches = [o for o in quant.overrides if fnmatchcase(name, o.pattern)]
    if len(matches) > 1:
        raise UserError(
            f"quant.overrides '{matches[0].pattern}' and '{matches[1].pattern}' both match {name}."
        )
    bits, group_size = quant.bits, quant.group_size
    if matches:
        bits = matches[0].bits or bits
        group_size = matches[0].group_size or group_size
    return Grid(
        bits=bits,
        group_size=group_size,
        symmetric=quant.symmetric,
        symmetric_grid=quant.symmetric_grid,
        scale_dtype=quant.scale_dtype,
    )
