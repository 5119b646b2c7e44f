"""AWQ's search for per-input-channel scales, in weight space.

Legend: W [out, in] the weight of one of the linears that share an input; a [in] an activation
statistic; G [in, in] = X'X / n_tokens; s [in] scales; Q rounding to the grid; E = Q(W s)/s - W.

    for alpha in {0, 1/n, ..., (n-1)/n}:   s = clamp(a^alpha, 1e-4);  s /= sqrt(max(s) min(s))
                                           loss = sum over the linears of tr(E G E'),
                                           the squared output error per token
    the smallest loss wins, ties go to the smaller alpha

Reference: AWQ, arXiv 2306.00978, and llm-awq's `auto_scale.py`. Differs from the reference: the loss is
taken on the linears' own outputs through the Gram matrix, so its cost does not depend on the number of
calibration tokens; `loss=module` in `quantization.module_loss` keeps the reference's objective.

Speed: the loss is a sum of non-negative parts over rows, so a candidate is given up as soon as its part
exceeds the whole loss of a better one. Where the hardware multiplies bfloat16 much faster than float32,
all candidates are first ranked with bfloat16 products: on a CPU those that every fourth row shows to
lose leave, the others are ranked on all rows, and only those within `CONTENDER_MARGIN` of the best are
computed in float32. On SmolLM2-135M no choice changes by it (90 searches, reports/LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.quantization.grid import Grid, fake_quantize
from faqbench.quantization.quadratic import (
    HalfGram,
    halve,
    has_fast_bfloat16,
    quadratic_form,
    row_chunks,
    row_quadratic_forms,
)

MIN_SCALE = 1e-4
CONTENDER_MARGIN = 0.003
# Every how many rows are sampled to rank candidates, how few are no sample, and by how many standard
# errors of a paired difference a candidate must lose there.
_RACE_STRIDE = 4
_LEAST_SAMPLE = 96
_RACE_SIGMAS = 4.0
# A part of a sum may be this much too large by rounding, relative to the whole.
_ROUNDING_MARGIN = 1e-5
# Where winners usually lie: what is tried first gives up the others early. No choice depends on it.
_USUAL_ALPHA = 0.4


@dataclass(frozen=True, kw_only=True)
class ScaleChoice:
    """The winner of a search.

    Attributes:
        alpha: the exponent, or None when no scale was searched.
        input_scale: [in_features], or None.
    """

    alpha: float | None
    input_scale: Tensor | None


def alpha_grid(n_grid: int) -> list[float]:
    """Return the candidate exponents 0, 1/n, ..., (n-1)/n; none for an empty grid."""
    return [i / n_grid for i in range(n_grid)]


def scale_from_statistic(statistic: Tensor, alpha: float) -> Tensor:
    """Return the normalised scales s [in_features] of a statistic at one exponent.

    The square root is taken factor by factor, so that max·min cannot underflow; channels that were
    never active get the smallest scale.
    """
    s = statistic.float().pow(alpha).clamp_(min=MIN_SCALE)
    return s / (s.max().sqrt() * s.min().sqrt())


def search_scale(
    weights: Sequence[Tensor],
    grids: Sequence[Grid],
    statistic: Tensor,
    gram: Tensor,
    alphas: Sequence[float],
) -> ScaleChoice:
    """Choose the exponent with the smallest output error, summed over linears that share an input.

    Args:
        weights: of each linear, [out_features, in_features].
        grids: the grid that each weight will be rounded to.
        statistic: [in_features], non-negative: AWQ's mean|x| or FAQ's blend.
        gram: [in_features, in_features] of the input, unscaled.
        alphas: candidate exponents, in increasing order; empty means no scaling, one means fixed.
    """
    if not alphas:
        return ScaleChoice(alpha=None, input_scale=None)
    if len(alphas) == 1:
        return ScaleChoice(alpha=alphas[0], input_scale=scale_from_statistic(statistic, alphas[0]))

    candidates = list(alphas)
    if has_fast_bfloat16(gram.device):
        coarse_gram = halve(gram, torch.bfloat16)
        candidates = _race(weights, grids, statistic, coarse_gram, candidates)
        coarse = _losses(weights, grids, statistic, coarse_gram, candidates, CONTENDER_MARGIN)
        limit = min(coarse) * (1 + CONTENDER_MARGIN)
        # NaN compares false everywhere: such candidates stay, and the exact pass decides about them.
        candidates = [a for a, c in zip(candidates, coarse, strict=True) if not c > limit]
    best = candidates[0]
    if len(candidates) > 1:
        exact = _losses(weights, grids, statistic, halve(gram), candidates, _ROUNDING_MARGIN)
        best = candidates[first_smallest(exact)]
    return ScaleChoice(alpha=best, input_scale=scale_from_statistic(statistic, best))


def _race(
    weights: Sequence[Tensor],
    grids: Sequence[Grid],
    statistic: Tensor,
    half: HalfGram,
    alphas: Sequence[float],
) -> list[float]:
    """Return the candidates that a part of the rows does not show to lose, in their order.

    The loss is a mean over rows. A candidate leaves when, paired over the sampled rows, it loses to the
    best of them by more than `_RACE_SIGMAS` standard errors and the margin of bfloat16 products.
    """
    sampled = [weight[::_RACE_STRIDE] for weight in weights]
    if half.blocks[0].device.type != "cpu" or sum(map(len, sampled)) < _LEAST_SAMPLE:
        return list(alphas)  # too few rows to tell; a GPU takes a whole weight as fast as a part
    losses = torch.stack(
        [
            torch.cat(
                [
                    row_quadratic_forms(_rounding_error(rows, input_scale, grid), half)
                    for rows, grid in zip(sampled, grids, strict=True)
                ]
            )
            for input_scale in (scale_from_statistic(statistic, alpha) for alpha in alphas)
        ]
    )
    best = losses[first_smallest(losses.sum(dim=1).tolist())]
    behind = losses - best
    slack = _RACE_SIGMAS * behind.std(dim=1) * losses.shape[1] ** 0.5
    loses = behind.sum(dim=1) > slack + CONTENDER_MARGIN * best.sum()  # never so with NaN
    return [alpha for alpha, out in zip(alphas, loses.tolist(), strict=True) if not out]


def _rounding_error(weight: Tensor, input_scale: Tensor, grid: Grid) -> Tensor:
    return fake_quantize(weight * input_scale, grid).div_(input_scale).sub_(weight)


def _losses(
    weights: Sequence[Tensor],
    grids: Sequence[Grid],
    statistic: Tensor,
    half: HalfGram,
    alphas: Sequence[float],
    margin: float,
) -> list[float]:
    """Return each candidate's loss; infinity for one that exceeds the smallest by more than `margin`."""
    losses = [math.inf] * len(alphas)
    for index in sorted(range(len(alphas)), key=lambda i: abs(alphas[i] - _USUAL_ALPHA)):
        input_scale = scale_from_statistic(statistic, alphas[index])
        limit = min((x for x in losses if not math.isnan(x)), default=math.inf) * (1 + margin)
        loss = 0.0
        for weight, grid in zip(weights, grids, strict=True):
            loss += gram_loss(weight, input_scale, half, grid, limit - loss)
            if loss > limit:
                break
        losses[index] = math.inf if loss > limit else loss
    return losses


def first_smallest(losses: Sequence[float]) -> int:
    """Return the index of the smallest loss, the first of equals; NaN never wins over a number."""
    return min(range(len(losses)), key=lambda i: (math.isnan(losses[i]), losses[i]))


def gram_loss(
    weight: Tensor, input_scale: Tensor, half: HalfGram, grid: Grid, limit: float = math.inf
) -> float:
    """Return the squared output error per token, tr(E G E'), of a weight rounded at one scale.

    Args:
        weight: [out_features, in_features].
        input_scale: [in_features].
        half: of the Gram matrix of the unscaled input.
        grid: the grid.
        limit: rows are added up until the sum exceeds it, and that part is returned.
    """
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    # Reading the sum makes a GPU wait, and its chunks are whole weights anyway.
    stops = weight.device.type == "cpu" and limit < math.inf
    for rows in row_chunks(weight):
        total += quadratic_form(_rounding_error(rows, input_scale, grid), half)
        if stops and float(total) > limit:
            break
    return float(total)
