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

A Hessian that cannot be factored gets more damping: see `damping.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.config.experiment import GPTQSection
from faqbench.quantization.damping import damped_cholesky
from faqbench.quantization.grid import (
    Grid,
    GroupParameters,
    clamp_between,
    clamp_groups,
    group_parameters,
)
from faqbench.quantization.reproducible import one_thread


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
        limit: [rows, n_groups], clamps each group to ±limit before it is rounded; what that takes off
            a column is part of the error that moves on.
    """
    weight, hessian = weight.clone(), hessian.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    n_columns = weight.shape[1]
    width = grid.group_width(n_columns)
    parameters = _parameters(weight, grid, width, limit)
    order = torch.arange(n_columns, device=weight.device)
    if settings.act_order:
        order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
        hessian = hessian[order][:, order]
    upper, damping, condition = inverse_factor(hessian, settings.damping)
    is_exact = width < n_columns and not settings.act_order
    # Columns as rows from here on: each is then contiguous, and a group's are next to each other.
    columns = weight.T[order].contiguous()
    codes = torch.empty_like(columns)
    step = max(1, settings.block_size // width) * width if is_exact else settings.block_size
    groups = (order // width).tolist()
    for start in range(0, n_columns, step):
        end = min(start + step, n_columns)
        block, factor = columns[start:end], upper[start:end, start:end]
        errors = torch.empty_like(block)
        for i in range(end - start):
            group = groups[start + i]
            if is_exact and (start + i) % width == 0:
                _refresh(parameters, group, block[i : i + width].T, grid, limit)
            code, value = _round_column(block[i], parameters, group, grid, limit)
            codes[start + i] = code
            errors[i] = (block[i] - value) / factor[i, i]
            block[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
        columns[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    codes = codes[torch.argsort(order)].T.contiguous().view(len(weight), -1, width)
    return GPTQResult(codes=codes, parameters=parameters, damping=damping, condition=condition)


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float, float]:
    """Return the upper Cholesky factor of the damped inverse, the damping used, and the condition.

    With J the reversal of the order of columns and J H J = L L', the factor is J L^-1 J: one Cholesky
    factorisation and one triangular solve, where the original inverts H and factors it again. Its scale is
    that of H over its mean diagonal; only ratios of its entries matter.

    Raises:
        HessianError: when no damping helps, as with NaN.
    """
    lower, damping = damped_cholesky(hessian.flip(0, 1), damping)
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    with one_thread(hessian.device):
        upper = torch.linalg.solve_triangular(lower, identity, upper=False).flip(0, 1)
    diagonal = lower.diagonal()
    return upper, damping, float((diagonal.max() / diagonal.min()) ** 2)


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
    column: Tensor, parameters: GroupParameters, group: int, grid: Grid, limit: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return a column's codes less their zero point, and their values; clipped first, as for RTN."""
    if limit is not None:
        column = clamp_between(column.clone(), -limit[:, group], limit[:, group])
    scale = parameters.scale[:, group]
    low, high = grid.code_range
    code = column.div(scale).round_()
    if parameters.zero_point is None:
        code.clamp_(low, high)
    else:
        zero = parameters.zero_point[:, group]
        clamp_between(code, low - zero, high - zero)
    return code, code * scale
