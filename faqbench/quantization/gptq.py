"""GPTQ, and GPTAQ, FOEM and ResComp: column by column, each one's error moved onto those still to come.

Legend: W [rows, in] already scaled, V as it was to begin with; H [in, in] the Hessian, X̂'X̂ / n_tokens of
the scaled input on the quantized stream; D [in, in] = (X - X̂)'X̂ / n_tokens, X that input in full
precision; U the upper Cholesky factor of (H + lambda I)^-1; striu the part above the diagonal.

    lambda = damping · mean(diag H);   dead columns (H_cc = 0): H_cc = 1, W_c = 0, D_kc = 0
    P = alpha striu(D U') U;   R = original striu((D + H) U') U
    for each column c:   W_c -= beta (W_c - V_c)
                         q_c = Q(W_c);   e = (W_c - q_c - beta (W_c - V_c)) / U_cc
                         W_j += W_c P_cj + (V_c - W_c) R_cj - e U_cj   for all j > c

    GPTQ      alpha = beta = original = 0
    GPTAQ     alpha: later columns also pay for what an earlier one's input lost upstream. Without striu,
              P = alpha D (H + lambda I)^-1, which is QEP's correction at strength alpha.
    FOEM      beta: a column is pulled back toward its own weight before it is rounded. No D.
    ResComp   alpha and original: also for how far a column has moved from its own weight.

Columns are worked on in lazy blocks: updates reach the rest of the matrix once per block.

Reference: GPTQ, arXiv 2210.17323, algorithm 1; GPTAQ, arXiv 2504.02692; FOEM, as in GPTQModel; ResComp,
arXiv 2604.07955. Differs from GPTQ's: a group's scale is always taken from weights that every earlier
column has corrected ("exact groups"), because no group straddles two lazy blocks, so the codes do not
depend on `block_size`; the original takes it, for groups narrower than its block, from weights as they
were when the lazy block began. With `act_order`, groups keep their consecutive columns and take their
scales from the uncorrected weights ("static groups"). Differs from GPTAQ's and ResComp's: W_c is the
column as it was when it was rounded also for columns beyond its lazy block, where theirs is the quantized
one; and damping is added to H once, not once for each linear that shares it. Differs from FOEM's: the
first column of a lazy block is pulled back as any other.

A Hessian that cannot be factored gets more damping: see `reproducible.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.config.experiment import GPTQSection, QuantSection
from faqbench.quantization.grid import (
    Grid,
    GroupParameters,
    Rounded,
    RoundInput,
    clamp_between,
    clamp_groups,
    group_parameters,
)
from faqbench.quantization.reproducible import damped_cholesky, one_thread


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What is moved beside GPTQ's error; with all three at 0 nothing is.

    Attributes:
        alpha: GPTAQ's share of D.
        beta: how far a column is pulled back toward its own weight.
        original: ResComp's share of D + H.
        cross: D [in_features, in_features] of the scaled input; None where alpha and original are 0.
    """

    alpha: float = 0.0
    beta: float = 0.0
    original: float = 0.0
    cross: Tensor | None = None


def round_gptq(
    weight: Tensor, known: RoundInput, grid: Grid, quant: QuantSection, limit: Tensor | None
) -> Rounded:
    """Round a scaled weight [rows, in_features] by GPTQ: the value `round=gptq` of the table.

    Raises:
        HessianError: when no damping makes the Hessian factorable.
    """
    return _round(weight, known, grid, quant, limit, Alignment())


def round_gptaq(
    weight: Tensor, known: RoundInput, grid: Grid, quant: QuantSection, limit: Tensor | None
) -> Rounded:
    """Round by GPTAQ, with FOEM's pull where beta is not 0: the value `round=gptaq`."""
    chosen = Alignment(alpha=quant.gptaq.alpha, beta=quant.gptaq.beta, cross=known.cross)
    return _round(weight, known, grid, quant, limit, chosen)


def round_foem(
    weight: Tensor, known: RoundInput, grid: Grid, quant: QuantSection, limit: Tensor | None
) -> Rounded:
    """Round by FOEM, which needs the quantized stream alone: the value `round=foem`."""
    return _round(weight, known, grid, quant, limit, Alignment(beta=quant.gptaq.beta))


def round_rescomp(
    weight: Tensor, known: RoundInput, grid: Grid, quant: QuantSection, limit: Tensor | None
) -> Rounded:
    """Round by ResComp: the value `round=rescomp`."""
    s = quant.gptaq
    chosen = Alignment(alpha=s.alpha, beta=s.beta, original=s.original, cross=known.cross)
    return _round(weight, known, grid, quant, limit, chosen)


def _round(
    weight: Tensor,
    known: RoundInput,
    grid: Grid,
    quant: QuantSection,
    limit: Tensor | None,
    alignment: Alignment,
) -> Rounded:
    assert known.hessian is not None
    return gptq_round(weight, known.hessian, grid, quant.gptq, limit, alignment)


def gptq_round(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    settings: GPTQSection,
    limit: Tensor | None = None,
    alignment: Alignment = Alignment(),
) -> Rounded:
    """Round a weight against a Hessian.

    Args:
        weight: [rows, in_features], scaled; not changed.
        hessian: [in_features, in_features] of the scaled input.
        grid: the grid.
        settings: damping, act_order and block_size.
        limit: [rows, n_groups], clamps each group to ±limit before it is rounded; what that takes off
            a column is part of the error that moves on.
        alignment: what moves beside that error.
    """
    problem = Problem.of(weight, hessian, alignment.cross, grid, settings.act_order, limit)
    upper, damping, condition = inverse_factor(problem.hessian, settings.damping)
    original = problem.columns.clone() if alignment.beta or alignment.original else None
    codes = problem.round(
        upper,
        settings.block_size,
        carried=_carried(problem, upper, alignment, original),
        pull=None if original is None or not alignment.beta else (alignment.beta, original),
    )
    return problem.rounded(codes, damping, condition)


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float, float]:
    """Return the upper Cholesky factor of the damped inverse, the damping used, and the condition.

    With J the reversal of the order of columns and J H J = L L', the factor is J L^-1 J: one Cholesky
    factorisation and one triangular solve, where the original inverts H and factors it again. Its scale is
    that of H over its mean diagonal.

    Raises:
        HessianError: when no damping helps, as with NaN.
    """
    lower, damping = damped_cholesky(hessian.flip(0, 1), damping)
    diagonal = lower.diagonal()
    condition = float((diagonal.max() / diagonal.min()) ** 2)
    with one_thread(hessian.device):
        # No matrix keeps a name that is of no more use: of a wide linear each is as large as the block.
        inverse = torch.linalg.solve_triangular(
            lower, torch.eye(len(lower), dtype=lower.dtype, device=lower.device), upper=False
        )
    del diagonal, lower
    return inverse.flip(0, 1), damping, condition


def _carried(
    problem: Problem, upper: Tensor, alignment: Alignment, original: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs (M, S) of which column c adds S_c M_cj to each later column j.

    W_c P_c + (V_c - W_c) R_c = W_c (P - R)_c + V_c R_c, with W_c as it is when it is rounded.
    """
    if problem.cross is None or not (alignment.alpha or alignment.original):
        return []
    size = problem.hessian.diagonal().mean()  # which `upper` leaves out

    def towards_later(moment: Tensor) -> Tensor:
        return ((moment / size) @ upper.T).triu(1) @ upper

    moved = alignment.alpha * towards_later(problem.cross)
    if not alignment.original:
        return [(moved, problem.columns)]
    assert original is not None
    back = alignment.original * towards_later(problem.cross + problem.hessian)
    return [(moved - back, problem.columns), (back, original)]


@dataclass
class Problem:
    """A weight to be rounded column by column, its columns in the order in which they are.

    Columns are rows here: each is then contiguous, and a group's are next to each other.

    Attributes:
        columns: [in_features, rows], overwritten by the rounding.
        hessian: [in_features, in_features].
        cross: D [in_features, in_features], or None.
        order: [in_features], the place of each column in the weight.
        width: of a group.
        act_order: whether the order is not the weight's.
        groups: what rounding needs to know of the groups.
    """

    columns: Tensor
    hessian: Tensor
    cross: Tensor | None
    order: Tensor
    width: int
    act_order: bool
    groups: _Groups

    @classmethod
    def of(
        cls,
        weight: Tensor,
        hessian: Tensor,
        cross: Tensor | None,
        grid: Grid,
        act_order: bool,
        limit: Tensor | None,
    ) -> Problem:
        """Copy all, take dead columns out, and put columns in order; arguments as for `gptq_round`."""
        weight, hessian = weight.clone(), hessian.clone()
        dead = hessian.diagonal() == 0
        hessian.diagonal()[dead] = 1
        weight[:, dead] = 0
        if cross is not None:
            cross = cross.masked_fill(dead, 0)
        n_columns = weight.shape[1]
        width = grid.group_width(n_columns)
        groups = _Groups.of(weight.view(len(weight), -1, width), grid, limit)
        order = torch.arange(n_columns, device=weight.device)
        if act_order:
            order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
            hessian = hessian[order][:, order]
            cross = None if cross is None else cross[order][:, order]
        return cls(
            columns=weight.T[order].contiguous(),
            hessian=hessian,
            cross=cross,
            order=order,
            width=width,
            act_order=act_order,
            groups=groups,
        )

    def round(
        self,
        upper: Tensor,
        block_size: int,
        *,
        carried: Sequence[tuple[Tensor, Tensor]] = (),
        pull: tuple[float, Tensor] | None = None,
        first: Tensor | None = None,
    ) -> Tensor:
        """Round all columns, and return their codes less their zero point in the shape of `columns`.

        Args:
            upper: U.
            block_size: of the lazy blocks.
            carried: see `_carried`.
            pull: beta, and the columns that each is pulled back to.
            first: [rows], what the first column is rounded from in place of its own values.
        """
        columns, n_columns, width = self.columns, len(self.columns), self.width
        codes = torch.empty_like(columns)
        is_exact = width < n_columns and not self.act_order
        step = max(1, block_size // width) * width if is_exact else block_size
        group_of = (self.order // width).tolist()
        for start in range(0, n_columns, step):
            end = min(start + step, n_columns)
            block, factor = columns[start:end], upper[start:end, start:end]
            errors = torch.empty_like(block)
            for i in range(end - start):
                c, group, error = start + i, group_of[start + i], errors[i]
                if pull is not None:
                    block[i].lerp_(pull[1][c], pull[0])
                if is_exact and c % width == 0:
                    self.groups.refresh(group, block[i : i + width].T)
                seen = block[i] if first is None or c > 0 else first
                self.groups.round_column(seen, group, code=codes[c], value=error)
                torch.sub(block[i], error, out=error)
                if pull is not None:
                    error.sub_(block[i] - pull[1][c], alpha=pull[0])
                error.div_(factor[i, i])
                block[i + 1 :].addr_(factor[i, i + 1 :], error, alpha=-1)
                for matrix, source in carried:
                    block[i + 1 :].addr_(matrix[c, c + 1 : end], source[c])
            columns[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
            for matrix, source in carried:
                columns[end:].addmm_(matrix[start:end, end:].T, source[start:end])
        return codes

    def rounded(self, codes: Tensor, damping: float, condition: float) -> Rounded:
        """Return the result in the order of the weight's columns."""
        codes = codes[torch.argsort(self.order)].T.contiguous()
        return Rounded(
            codes=codes.view(len(codes), -1, self.width),
            parameters=self.groups.parameters(),
            damping=damping,
            condition=condition,
        )


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
