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

from faqbench.config.experiment import GPTQSection, QuantSection
from faqbench.quantization.damping import damped_cholesky
from faqbench.quantization.grid import (
    Grid,
    GroupParameters,
    Rounded,
    RoundInput,
    clamp_between,
    clamp_groups,
    group_parameters,
)
from faqbench.quantization.reproducible import one_thread


def round_gptq(
    weight: Tensor, known: RoundInput, grid: Grid, quant: QuantSection, limit: Tensor | None
) -> Rounded:
    """Round a scaled weight [rows, in_features] by GPTQ: the value `round=gptq` of the table.

    Raises:
        HessianError: when no damping makes the Hessian factorable.
    """
    assert known.hessian is not None
    return gptq_round(weight, known.hessian, grid, quant.gptq, limit)


def gptq_round(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    settings: GPTQSection,
    limit: Tensor | None = None,
) -> Rounded:
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
    groups = _Groups.of(weight.view(len(weight), -1, width), grid, limit)
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
    group_of = (order // width).tolist()
    for start in range(0, n_columns, step):
        end = min(start + step, n_columns)
        block, factor = columns[start:end], upper[start:end, start:end]
        errors = torch.empty_like(block)
        for i in range(end - start):
            group = group_of[start + i]
            if is_exact and (start + i) % width == 0:
                groups.refresh(group, block[i : i + width].T)
            groups.round_column(block[i], group, code=codes[start + i], value=errors[i])
            torch.sub(block[i], errors[i], out=errors[i]).div_(factor[i, i])
            block[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
        columns[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    codes = codes[torch.argsort(order)].T.contiguous().view(len(weight), -1, width)
    return Rounded(
        codes=codes, parameters=groups.parameters(), damping=damping, condition=condition
    )


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


@dataclass
class _Groups:
    """What rounding needs to know of every group; a group is one contiguous row.

    Attributes:
        grid: of all groups.
        scale: [n_groups, rows].
        zero_point: [n_groups, rows]; zeros when symmetric.
        low: [n_groups, rows], the smallest code less the zero point.
        high: [n_groups, rows], the largest.
        limit: [n_groups, rows] that values are clamped to, or None.
    """

    grid: Grid
    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor
    limit: Tensor | None

    @classmethod
    def of(cls, grouped: Tensor, grid: Grid, limit: Tensor | None) -> _Groups:
        """Take the parameters of a weight [rows, n_groups, width] as it is."""
        shape = (grouped.shape[1], grouped.shape[0])
        groups = cls(
            grid=grid,
            scale=grouped.new_empty(shape),
            zero_point=grouped.new_empty(shape),
            low=grouped.new_empty(shape),
            high=grouped.new_empty(shape),
            limit=None if limit is None else limit.T.contiguous(),
        )
        for group in range(grouped.shape[1]):
            groups.refresh(group, grouped[:, group])
        return groups

    def refresh(self, group: int, columns: Tensor) -> None:
        """Take one group's parameters anew from its columns [rows, width]."""
        if self.limit is not None:
            columns = clamp_groups(columns, self.limit[group])
        fresh = group_parameters(columns, self.grid)
        self.scale[group] = fresh.scale
        self.zero_point[group] = 0 if fresh.zero_point is None else fresh.zero_point
        low, high = self.grid.code_range
        torch.sub(low, self.zero_point[group], out=self.low[group])
        torch.sub(high, self.zero_point[group], out=self.high[group])

    def round_column(self, column: Tensor, group: int, *, code: Tensor, value: Tensor) -> None:
        """Write a column's codes less their zero point, and their values; clipped first, as for RTN."""
        if self.limit is not None:
            column = clamp_between(column.clone(), -self.limit[group], self.limit[group])
        torch.div(column, self.scale[group], out=code).round_()
        clamp_between(code, self.low[group], self.high[group])
        torch.mul(code, self.scale[group], out=value)

    def parameters(self) -> GroupParameters:
        """Return the parameters as [rows, n_groups]."""
        zero = None if self.grid.symmetric else self.zero_point.T.contiguous()
        return GroupParameters(scale=self.scale.T.contiguous(), zero_point=zero)
