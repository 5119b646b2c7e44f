"""Searches for a shrunken range, per output row and group: AWQ's, and the closest one.

Legend: W [rows, in] already scaled; G_g [width, width] the Gram block of group g of the scaled input.

    for i in 0 .. steps-1:   limit = max|W_g| (1 - i · max_shrink / steps)
                             d = Q(clamp(W_g, ±limit)) - W_g;   loss = d G_g d'
    the smallest loss wins, ties go to the wider range

Reference of `clip=search`: llm-awq's `auto_clip.py` (steps 10 of a shrink up to 0.5, on sampled tokens).
Differs from the reference: the loss uses all calibration tokens, through the Gram matrix, at a cost that
does not depend on their number.

`clip=mse` and `clip=mse_unweighted` take another loss, which looks at each weight by itself:

    loss = sum over c of h_c |d_c|^p       h the diagonal of G, or all 1

Reference: `mse` of GPTQ's code and `w_clip` of QuaRot's, with p 2.4 and shrinks in hundredths up to 0.8.
They are unweighted. Differs from them: a limit is one number for both ends of a range, so that of a group
that is not centred the longer end is cut first, where theirs shrinks both ends alike; and it is found once,
before columns are rounded, also where a column's group takes its scale from corrected weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from faqbench.config.experiment import QuantSection
from faqbench.quantization.grid import Grid, clamp_groups, range_parameters, round_to_codes, scaled_groups
from faqbench.quantization.reproducible import row_chunks


def group_grams(gram: Tensor, input_scale: Tensor | None, width: int) -> Tensor:
    """Return the diagonal blocks [n_groups, width, width] of the Gram matrix of x / input_scale."""
    n_groups = gram.shape[0] // width
    blocks = gram.view(n_groups, width, n_groups, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    if input_scale is None:
        return blocks.contiguous()
    s = input_scale.view(n_groups, width)
    return blocks / (s.unsqueeze(2) * s.unsqueeze(1))


def searched_limit(
    weight: Tensor, gram: Tensor, grid: Grid, input_scale: Tensor | None, quant: QuantSection
) -> Tensor:
    """Return `search_clip`'s limits with a method's settings: the value `clip=search` of the table."""
    return search_clip(
        weight,
        gram,
        grid,
        input_scale=input_scale,
        steps=quant.search.clip_steps,
        max_shrink=quant.search.clip_max_shrink,
    )


def search_clip(
    weight: Tensor, gram: Tensor, grid: Grid, *, input_scale: Tensor | None, steps: int, max_shrink: float
) -> Tensor:
    """Return the best symmetric limit of every group, [out_features, n_groups].

    Args:
        weight: [out_features, in_features], unscaled.
        gram: [in_features, in_features] of the unscaled input.
        grid: the grid that the clamped weight will be rounded to.
        input_scale: [in_features] that the weight is multiplied by before rounding, or None.
        steps: how many limits are tried, the full range included.
        max_shrink: the shrink that `steps` would reach; the last one tried is one step short of it.
    """
    width = grid.group_width(weight.shape[1])
    grams = group_grams(gram.float(), input_scale, width)

    def loss(error: Tensor) -> Tensor:
        return torch.bmm(error, grams).mul_(error).sum(dim=-1)

    limits = []
    for rows in row_chunks(weight):
        scaled = rows.float() if input_scale is None else rows.float() * input_scale
        # [rows, n_groups, width] -> [n_groups, rows, width], the layout of a batched product
        grouped = scaled.view(rows.shape[0], -1, width).transpose(0, 1).contiguous()
        limits.append(_best_limit(grouped, grid, steps, max_shrink, loss).T)
    return torch.cat(limits)


def closest_limit(
    weight: Tensor, gram: Tensor | None, grid: Grid, input_scale: Tensor | None, quant: QuantSection
) -> Tensor:
    """Return the limits [out_features, n_groups] that keep weights closest: `clip=mse` of the table.

    Args:
        weight: [out_features, in_features], unscaled.
        gram: [in_features, in_features] of the unscaled input, whose diagonal weighs errors; None weighs
            all alike.
        grid: the grid that the clamped weight will be rounded to.
        input_scale: [in_features] that the weight is multiplied by before rounding, or None.
        quant: whose `mse` says which power of errors is summed up, and which limits are tried.
    """
    width = grid.group_width(weight.shape[1])
    weights = None
    if gram is not None:
        weights = gram.diagonal() if input_scale is None else gram.diagonal() / input_scale.square()
        weights = weights.view(-1, width)

    def loss(error: Tensor) -> Tensor:
        size = error.square_() if quant.mse.p == 2 else error.abs_().pow_(quant.mse.p)
        return (size if weights is None else size.mul_(weights)).sum(dim=-1)

    limits = []
    for rows in row_chunks(weight):
        grouped = scaled_groups(rows, grid, input_scale)
        limits.append(_best_limit(grouped, grid, quant.mse.steps, quant.mse.max_shrink, loss))
    return torch.cat(limits)


def _best_limit(
    grouped: Tensor, grid: Grid, steps: int, max_shrink: float, loss_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the limits of groups [..., width]; `loss_of` gives the losses of errors and may spoil them."""
    low, high = grouped.amin(dim=-1), grouped.amax(dim=-1)
    largest = torch.maximum(high, -low)
    best_limit, best_loss = largest, torch.full_like(largest, torch.inf)
    for i in range(steps):
        limit = largest * (1 - i * max_shrink / steps)
        parameters = range_parameters(torch.maximum(low, -limit), torch.minimum(high, limit), grid)
        error = round_to_codes(clamp_groups(grouped, limit), parameters, grid)
        error = error.mul_(parameters.scale.unsqueeze(-1)).sub_(grouped)
        loss = loss_of(error)
        better = loss < best_loss
        best_loss = torch.where(better, loss, best_loss)
        best_limit = torch.where(better, limit, best_limit)
    return best_limit
