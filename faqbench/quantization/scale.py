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

Speed: where the hardware multiplies bfloat16 much faster than float32, all candidates are first ranked
with bfloat16 products, and only those within `CONTENDER_MARGIN` of the best are computed in float32.
On SmolLM2-135M the ratio of the two losses varied by less than 0.1 % between candidates, so a margin
of 0.5 % keeps the winner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.quantization.grid import Grid, fake_quantize

MIN_SCALE = 1e-4
CONTENDER_MARGIN = 0.005
# Elements of a weight that are worked on at a time: small enough to stay in a core's cache.
_CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}


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

    def loss(alpha: float, gram: Tensor) -> float:
        input_scale = scale_from_statistic(statistic, alpha)
        return sum(gram_loss(w, input_scale, gram, g) for w, g in zip(weights, grids, strict=True))

    contenders = alphas
    if has_fast_bfloat16(gram.device):
        coarse_gram = gram.to(torch.bfloat16)
        coarse = [loss(alpha, coarse_gram) for alpha in alphas]
        limit = min(coarse) * (1 + CONTENDER_MARGIN)
        # NaN compares false everywhere: such candidates stay, and the exact pass decides about them.
        contenders = [a for a, c in zip(alphas, coarse, strict=True) if not c > limit]
    exact = [loss(alpha, gram) for alpha in contenders] if len(contenders) > 1 else [0.0]
    best = contenders[first_smallest(exact)]
    return ScaleChoice(alpha=best, input_scale=scale_from_statistic(statistic, best))


def first_smallest(losses: Sequence[float]) -> int:
    """Return the index of the smallest loss, the first of equals; NaN never wins over a number."""
    return min(range(len(losses)), key=lambda i: (math.isnan(losses[i]), losses[i]))


def gram_loss(weight: Tensor, input_scale: Tensor, gram: Tensor, grid: Grid) -> float:
    """Return the squared output error per token, tr(E G E'), of a weight rounded at one scale.

    Args:
        weight: [out_features, in_features].
        input_scale: [in_features].
        gram: [in_features, in_features]; its dtype is that of the matrix product.
        grid: the grid.
    """
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for rows in row_chunks(weight):
        error = fake_quantize(rows * input_scale, grid).div_(input_scale).sub_(rows)
        total += quadratic_form(error, gram)
    return float(total)


def quadratic_form(error: Tensor, gram: Tensor) -> Tensor:
    """Return tr(E G E') as a scalar; the product E G is taken in the Gram matrix's dtype."""
    product = (error.to(gram.dtype) @ gram).to(error.dtype)
    return torch.dot(product.view(-1), error.view(-1))


def row_chunks(weight: Tensor) -> tuple[Tensor, ...]:
    """Cut a weight into pieces of whole rows that fit a core's cache."""
    elements = _CHUNK_ELEMENTS.get(weight.device.type, 2**20)
    return torch.split(weight, max(1, elements // weight.shape[1]))


def has_fast_bfloat16(device: torch.device) -> bool:
    """Say whether bfloat16 matrix products are much faster than float32 ones on a device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
