"""GPTQ: rounding column by column, each column's error moved onto the columns still to come.

Legend: W [rows, in] already scaled; H [in, in] the Hessian, X'X / n_tokens of the scaled input; U the
upper Cholesky factor of (H + lambda I)^-1.

    lambda = damping · mean(diag H);   dead columns (H_cc = 0): H_cc = 1, W_c = 0
    for each column c:   q_c = Q(W_c);   e = (W_c - q_c) / U_cc;   W_j -= e U_cj for all j > c

Columns are worked on in lazy blocks: updates reach the rest of the matrix once per block.

Reference: GPTQ, arXiv 2210.17323, algorithm 1. Differs from the reference: a group's scale is always
taken from weights that every earlier column has corrected ("exact groups"), because no group straddles
two lazy blocks, so the codes do not depend on `block_size`; the original takes it, for groups narrower
than its block, from weights as they were when the lazy block began. With `act_order`, groups keep their
consecutive columns and take their scales from the uncorrected weights ("static groups").

A Hessian that cannot be factored gets ten times the damping, again and again; what was used is returned.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.config.experiment import GPTQSection
from faqbench.quantization.grid import (
    Grid,
    GroupParameters,
    clamp_between,
    clamp_groups,
    group_parameters,
)

MAX_DAMPING = 1e4


@dataclass(frozen=True, kw_only=True)
class GPTQResult:
    """The outcome of GPTQ.

    Attributes:
        codes: less their zero point, [rows, n_groups, width].
        parameters: scale and zero point per group.
        damping: the relative damping that made the Hessian factorable.
        condition: of the damped Hessian, estimated from its Cholesky factor's diagonal.
    """

    codes: Tensor
    parameters: GroupParameters
    damping: float
    condition: float


def gptq_round(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    settings: GPTQSection,
    limit: Tensor | None = None,
) -> GPTQResult:
    """Round a weight against a Hessian.

    Args:
        weight: [rows, in_features], scaled; not changed.
        hessian: [in_features, in_features] of the scaled input.
        grid: the grid.
        settings: damping, act_order and block_size.
        limit: [rows, n_groups], bounds the range that each group's scale is taken from.
    """
    weight, hessian = weight.clone(), hessian.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    width = grid.group_width(weight.shape[1])
    order = None
    parameters = _parameters(weight, grid, width, limit)
    if settings.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        weight, hessian = weight[:, order], hessian[order][:, order]
    upper, damping, condition = inverse_factor(hessian, settings.damping)
    columns = order if order is not None else torch.arange(weight.shape[1], device=weight.device)
    groups = (columns // width).tolist()
    per_block = (
        max(1, settings.block_size // width) * width
        if width < weight.shape[1]
        else settings.block_size
    )
    codes = torch.empty_like(weight)
    for start in range(0, weight.shape[1], per_block):
        end = min(start + per_block, weight.shape[1])
        errors = torch.empty_like(weight[:, start:end])
        for column in range(start, end):
            group = groups[column]
            if order is None and column % width == 0 and width < weight.shape[1]:
                _refresh(parameters, group, weight[:, column : column + width], grid, limit)
            code, value = _round_column(weight[:, column], parameters, group, grid)
            codes[:, column] = code
            error = (weight[:, column] - value) / upper[column, column]
            weight[:, column:end].addr_(error, upper[column, column:end], alpha=-1)
            errors[:, column - start] = error
        weight[:, end:].addmm_(errors, upper[start:end, end:], alpha=-1)
    if order is not None:
        codes = codes[:, torch.argsort(order)]
    return GPTQResult(
        codes=codes.view(len(codes), -1, width),
        parameters=parameters,
        damping=damping,
        condition=condition,
    )


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float, float]:
    """Return the upper Cholesky factor of the damped inverse, the damping used, and the condition.

    Raises:
        ValueError: when no damping up to 10^4 times the mean diagonal helps, as with NaN.
    """
    mean = hessian.diagonal().mean()
    while damping <= MAX_DAMPING:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed and bool(upper.isfinite().all()):
                diagonal = lower.diagonal()
                return upper, damping, float((diagonal.max() / diagonal.min()) ** 2)
        damping *= 10
    raise ValueError("the Hessian cannot be factored at any damping; it may hold NaN or infinity")


def _parameters(weight: Tensor, grid: Grid, width: int, limit: Tensor | None) -> GroupParameters:
    grouped = weight.view(len(weight), -1, width)
    return group_parameters(grouped if limit is None else clamp_groups(grouped, limit), grid)


def _refresh(
    parameters: GroupParameters, group: int, columns: Tensor, grid: Grid, limit: Tensor | None
) -> None:
    """Take one group's scale and zero point anew from its corrected columns [rows, width]."""
    bound = None if limit is None else limit[:, group : group + 1]
    fresh = _parameters(columns.contiguous(), grid, columns.shape[1], bound)
    parameters.scale[:, group] = fresh.scale[:, 0]
    if parameters.zero_point is not None and fresh.zero_point is not None:
        parameters.zero_point[:, group] = fresh.zero_point[:, 0]


def _round_column(
    column: Tensor, parameters: GroupParameters, group: int, grid: Grid
) -> tuple[Tensor, Tensor]:
    scale = parameters.scale[:, group]
    low, high = grid.code_range
    code = column.div(scale).round_()
    if parameters.zero_point is None:
        code.clamp_(low, high)
    else:
        zero = parameters.zero_point[:, group]
        clamp_between(code, low - zero, high - zero)
    return code, code * scale
