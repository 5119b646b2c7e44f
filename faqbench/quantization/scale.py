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

Speed: candidates are ranked first, on a part of the rows where that shows them to lose
(`quantization.ranking`), and with bfloat16 products where the hardware multiplies those much faster than
float32. Only those within a margin of the best are then computed in full in float32. On SmolLM2-135M no
choice changes by it (reports/LOG.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from faqbench.hardware import has_fast_bfloat16
from faqbench.quantization.grid import Grid, fake_quantize
from faqbench.quantization.quadratic import HalfGram, halve, quadratic_form, row_chunks, row_quadratic_forms
from faqbench.quantization.ranking import contenders, first_smallest

MIN_SCALE = 1e-4
# By how much bfloat16 products may misjudge one candidate's loss against another's; on SmolLM2-135M they
# do by 0.0003 at most (reports/LOG.md).
BFLOAT16_MARGIN = 0.001
# Into how many samples the rows are cut for ranking, and how few rows are none.
_N_SAMPLES = 6
_LEAST_SAMPLE = 96
# By how much float32 sums in another order may differ, relative to the whole.
_ROUNDING_MARGIN = 1e-5
# Where winners usually lie: ranking is faster when it starts near the best.
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

    fast = has_fast_bfloat16(gram.device)
    ranked = contenders(
        _RowLosses(
            weights=weights,
            grids=grids,
            input_scales=[scale_from_statistic(statistic, alpha) for alpha in alphas],
            half=halve(gram, torch.bfloat16 if fast else torch.float32),
        ),
        len(alphas),
        first=min(range(len(alphas)), key=lambda i: abs(alphas[i] - _USUAL_ALPHA)),
        margin=BFLOAT16_MARGIN if fast else _ROUNDING_MARGIN,
        n_samples=_n_samples(weights),
    )
    candidates = [alphas[index] for index in ranked]
    best = candidates[0]
    if len(candidates) > 1:
        half = halve(gram)
        losses = []
        for alpha in candidates:
            s = scale_from_statistic(statistic, alpha)
            pairs = zip(weights, grids, strict=True)
            losses.append(sum(gram_loss(weight, s, half, grid) for weight, grid in pairs))
        best = candidates[first_smallest(losses)]
    return ScaleChoice(alpha=best, input_scale=scale_from_statistic(statistic, best))


@dataclass(frozen=True, kw_only=True)
class _RowLosses:
    """The losses of some candidates on some rows, counted through all weights of a role."""

    weights: Sequence[Tensor]
    grids: Sequence[Grid]
    input_scales: Sequence[Tensor]
    half: HalfGram

    def __len__(self) -> int:
        return sum(map(len, self.weights))

    def __call__(self, candidates: Sequence[int], rows: Tensor) -> Tensor:
        losses = torch.empty(len(candidates), len(rows), dtype=torch.float64, device=self.weights[0].device)
        for grid in dict.fromkeys(self.grids):
            columns, picked = self._pick(rows, grid)
            for line, candidate in zip(losses, candidates, strict=True):
                line[columns] = torch.cat(
                    [
                        row_quadratic_forms(
                            _rounding_error(chunk, self.input_scales[candidate], grid), self.half
                        )
                        for chunk in row_chunks(picked)
                    ]
                )
        return losses

    def _pick(self, rows: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Return which of the rows are on a grid, and their weights [rows on the grid, in_features]."""
        columns, picked, start = [], [], 0
        for weight, own in zip(self.weights, self.grids, strict=True):
            if own == grid:
                here = ((rows >= start) & (rows < start + len(weight))).nonzero().flatten()
                columns.append(here)
                picked.append(weight[rows[here] - start])
            start += len(weight)
        return torch.cat(columns), torch.cat(picked)


def _n_samples(weights: Sequence[Tensor]) -> int:
    """Return into how many samples the rows are cut: a GPU takes a whole weight as fast as a part."""
    if weights[0].device.type != "cpu":
        return 1
    return max(1, min(_N_SAMPLES, sum(map(len, weights)) // _LEAST_SAMPLE))


def _rounding_error(weight: Tensor, input_scale: Tensor, grid: Grid) -> Tensor:
    """Return W - Q(W s)/s: -E, whose quadratic form is E's."""
    rounded = fake_quantize(weight * input_scale, grid)
    return torch.addcdiv(weight, rounded, input_scale, value=-1, out=rounded)


def gram_loss(weight: Tensor, input_scale: Tensor, half: HalfGram, grid: Grid) -> float:
    """Return the squared output error per token, tr(E G E'), of a weight rounded at one scale.

    Args:
        weight: [out_features, in_features].
        input_scale: [in_features].
        half: of the Gram matrix of the unscaled input.
        grid: the grid.
    """
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for rows in row_chunks(weight):
        total += quadratic_form(_rounding_error(rows, input_scale, grid), half)
    return float(total)
