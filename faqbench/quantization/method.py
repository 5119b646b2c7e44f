"""One role of one decoder block through all stages: scale, clip, round.

The linears of a role share an input, hence one scale. The search sees the unscaled full precision
weights; the clip search and the rounding see the scaled ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.config.experiment import QuantSection
from faqbench.models import Architecture, Role
from faqbench.quantization.activations import RoleStatistics
from faqbench.quantization.clip import search_clip
from faqbench.quantization.grid import Grid, QuantizedLinear, fake_quantize, quantize
from faqbench.quantization.preview import preview_statistic
from faqbench.quantization.scale import (
    ScaleChoice,
    alpha_grid,
    quadratic_form,
    row_chunks,
    search_scale,
)


@dataclass(frozen=True, kw_only=True)
class RoleResult:
    """A quantized role.

    Attributes:
        linears: by name relative to the block.
        alpha: the chosen exponent; None when nothing was scaled.
        clipped_frac: by linear, the share of weights that lie outside their group's limit.
    """

    linears: Mapping[str, QuantizedLinear]
    alpha: float | None
    clipped_frac: Mapping[str, float]


def quantize_role(
    role: Role,
    weights: Mapping[str, Tensor],
    grids: Mapping[str, Grid],
    statistics: RoleStatistics | None,
    statistic: Tensor | None,
    quant: QuantSection,
) -> RoleResult:
    """Quantize the linears of one role.

    Args:
        role: the role.
        weights: float32 [out_features, in_features] by linear name.
        grids: the grid of each linear.
        statistics: of the role's input; None for methods that read no activations.
        statistic: [in_features] that the scales are made of; None leaves the role unscaled.
        quant: the method.
    """
    choice = ScaleChoice(alpha=None, input_scale=None)
    if statistic is not None:
        assert statistics is not None
        alphas = _alphas(quant)
        choice = search_scale(
            list(weights.values()), list(grids.values()), statistic, statistics.gram, alphas
        )
    linears, clipped_frac = {}, {}
    for name, weight in weights.items():
        limit = None
        if quant.clip == "search" and name not in role.unclipped:
            assert statistics is not None
            limit = search_clip(
                weight,
                statistics.gram,
                grids[name],
                input_scale=choice.input_scale,
                steps=quant.search.clip_steps,
                max_shrink=quant.search.clip_max_shrink,
            )
        linears[name] = quantize(weight, grids[name], input_scale=choice.input_scale, limit=limit)
        clipped_frac[name] = _clipped_frac(weight, choice.input_scale, limit)
    return RoleResult(linears=linears, alpha=choice.alpha, clipped_frac=clipped_frac)


def scale_statistic(
    role: Role,
    current: Tensor,
    later: Sequence[Tensor],
    architecture: Architecture,
    quant: QuantSection,
) -> Tensor | None:
    """Return the vector [in_features] that a role's scales are made of, or None to leave it unscaled.

    Args:
        role: the role.
        current: [in_features], mean|x| of this block.
        later: mean|x| of the same role in the blocks after this one, nearest first.
        architecture: tells whether o's scale has linear rows to fold into.
        quant: the method.
    """
    if quant.scale == "none" or skipped_scale(role, architecture, quant) is not None:
        return None
    previews = quant.scale == "faq" and (quant.preview.roles == "all" or role.residual)
    statistic = preview_statistic(current, later, quant.preview) if previews else current
    if role.name == "o" and architecture.is_grouped_query:
        return _shared_by_kv_head(statistic, architecture)
    return statistic


def skipped_scale(role: Role, architecture: Architecture, quant: QuantSection) -> str | None:
    """Say why a role gets no scale, or return None when it gets one."""
    if quant.scale == "none" or role.name != "o" or not architecture.is_grouped_query:
        return None
    if quant.search.gqa_scale == "repeat":
        return None
    return (
        f"{role.source} -> {role.linears[0]}: {architecture.n_heads} query heads share "
        f"{architecture.n_kv_heads} value heads (quant.search.gqa_scale=repeat scales them)"
    )


def relative_error(weight: Tensor, quantized: Tensor, gram: Tensor) -> float:
    """Return the squared output error over the squared output, tr(E G E') / tr(W G W')."""
    error = torch.zeros((), dtype=torch.float64, device=weight.device)
    size = torch.zeros_like(error)
    for rows, stand_in in zip(row_chunks(weight), row_chunks(quantized), strict=True):
        error += quadratic_form(stand_in - rows, gram)
        size += quadratic_form(rows, gram)
    return float(error / size) if size > 0 else float(error)


def nearest_error(weight: Tensor, grid: Grid, gram: Tensor) -> float:
    """Return the relative output error of plain rounding to nearest on the same grid."""
    return relative_error(weight, fake_quantize(weight, grid), gram)


def _alphas(quant: QuantSection) -> list[float]:
    if quant.scale == "faq" and quant.preview.alpha is not None:
        return [quant.preview.alpha]
    return alpha_grid(quant.search.n_grid)


def _shared_by_kv_head(statistic: Tensor, architecture: Architecture) -> Tensor:
    """Average o's statistic over the query heads that share a value head, and repeat it for each."""
    shape = (architecture.n_kv_heads, -1, architecture.head_dim)
    heads = statistic.view(shape)
    return heads.mean(dim=1, keepdim=True).expand_as(heads).reshape(-1)


def _clipped_frac(weight: Tensor, input_scale: Tensor | None, limit: Tensor | None) -> float:
    if limit is None:
        return 0.0
    scaled = weight if input_scale is None else weight * input_scale
    outside = scaled.view(*limit.shape, -1).abs() > limit.unsqueeze(-1)
    return float(outside.float().mean())
