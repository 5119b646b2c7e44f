"""AWQ's search for per-input-channel scales, in weight space, and scales in closed form.

Legend: W [out, in] the weight of one of the linears that share an input; a [in] the importance of its
channels; G [in, in] = X'X / n_tokens; s [in] scales; Q rounding to the grid; E = Q(W s)/s - W.

    for alpha in {0, 1/n, ..., (n-1)/n}:   s = clamp(a^alpha, 1e-4);  s /= sqrt(max(s) min(s))
                                           loss = sum over the linears of tr(E G E'),
                                           the squared output error per token
    the smallest loss wins, ties go to the smaller alpha

Reference: AWQ, arXiv 2306.00978, and llm-awq's `auto_scale.py`. Differs from the reference: the loss is
taken on the linears' own outputs through the Gram matrix, so its cost does not depend on the number of
calibration tokens; `loss=module` in `quantization.module_loss` keeps the reference's objective.

Speed: candidates are ranked first, on a part of the rows where that shows them to lose
(`contenders`), and with bfloat16 products where the hardware multiplies those much faster than
float32. Only those within a margin of the best are then computed in full in float32. On SmolLM2-135M no
choice changes by it (reports/LOG.md).

Ranking. A loss is a sum over the rows of a weight, and rows are alike but not equal: in some layers a few
rows make most of it. So one candidate is taken in full first, and tells which rows are heavy. All
candidates are taken on the heavy rows, then on one sample of the others after another, and leave when
what is known of them rules them out:

    behind(c) = seen loss of c + least(c) - whole loss of the leader
    least(c)  = max(0, loss of the leader on U + n_U · (mean(d) - sigmas · standard error))

where U are the unseen rows on which the leader loses no more than on some sampled row, and d is the paired
difference to the leader on the sampled rows. The leader is always taken in full. On unseen rows where
it is heavier than on any sampled one, c may lose nothing; where c is heavy itself, a sampled row widens
the standard error, and an unseen one makes c worse than thought, not better.

SmoothQuant's and LAE's scales are of the largest activation of each channel. Legend: here a [in] the
largest |x| of each channel over the calibration tokens; w [in] the largest |W| of each column over all
linears that share the input; s [in] the scale that weights are multiplied by and inputs divided by.

    smoothquant   s = a^alpha / w^(1 - alpha)      a and w at least 1e-5
    lae           s = a / log2(2 + a)              at least 1e-2; a = 2 gives 1

Both even out what activations and weights leave to round, so they are meant for quantized activations.
Only inputs that are a norm of the residual stream are scaled (qkv and gate_up), whose scale folds into the
norm; o and down keep their inputs as they are.

Reference: SmoothQuant, arXiv 2211.10438, and its `smooth.py`; LAE is the start of LRQuant's training
(ACL 2024) and FPTQ's logarithmic activation equalization, arXiv 2308.15987. Differs from LRQuant, which
scales o too where o and v are equally wide, and keeps s at least 1e-2 while it trains, as we do at once:
a channel that is never active would make its norm's gain explode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from faqbench.config.experiment import QuantSection
from faqbench.hardware import has_fast_bfloat16
from faqbench.quantization.grid import Grid, fake_quantize
from faqbench.quantization.reproducible import (
    HalfGram,
    halve,
    quadratic_form,
    row_chunks,
    row_quadratic_forms,
)

_LOSING_SIGMAS = 4.0
_HEAVY_FRAC = 1 / 32


class RowLosses(Protocol):
    """The loss of every candidate on every row."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __call__(self, candidates: Sequence[int], rows: Tensor) -> Tensor:
        """Return float64 [candidates, rows], non-negative or NaN."""
        ...


def contenders(
    row_losses: RowLosses, n_candidates: int, *, first: int, margin: float, n_samples: int
) -> list[int]:
    """Return the candidates whose loss may be within `margin` of the smallest, in increasing order.

    Args:
        row_losses: of the candidates. One whose loss is seen to be NaN stays.
        n_candidates: how many there are.
        first: the candidate that is taken in full first; close to the best, it saves work.
        margin: relative to the smallest loss.
        n_samples: into how many samples the rows are cut; 1 takes every loss in full.
    """
    n_rows = len(row_losses)
    losses_seen = row_losses([first], torch.arange(n_rows))
    order = losses_seen[0].argsort(descending=True, stable=True).cpu()
    losses = losses_seen.new_zeros(n_candidates, n_rows)  # columns in the order of `order`
    losses[first] = losses_seen[0, order]
    in_full, kept = {first}, list(range(n_candidates))
    heavy = torch.arange(n_rows) < math.ceil(n_rows * _HEAVY_FRAC)
    sampled = torch.zeros(n_rows, dtype=torch.bool)
    for sample in range(n_samples):
        new = ~heavy & (torch.arange(n_rows) % n_samples == sample)
        sampled |= new
        seen = sampled | heavy
        unknown = [c for c in kept if c not in in_full]
        _take(row_losses, unknown, order, seen if sample == 0 else new, losses)
        leader = kept[first_smallest(losses[kept][:, seen].sum(dim=1).tolist())]
        if leader not in in_full:
            _take(row_losses, [leader], order, ~seen, losses)
            in_full.add(leader)
        behind = _behind(losses[kept], losses[leader], seen, sampled)
        limit = margin * float(losses[leader].sum())
        kept = [c for c, b in zip(kept, behind.tolist(), strict=True) if c == leader or not b > limit]
        if len(kept) == 1:
            break
    return kept


def first_smallest(losses: Sequence[float]) -> int:
    """Return the index of the smallest loss, the first of equals; NaN never wins over a number."""
    return min(range(len(losses)), key=lambda i: (math.isnan(losses[i]), losses[i]))


def _take(
    row_losses: RowLosses, candidates: Sequence[int], order: Tensor, rows: Tensor, losses: Tensor
) -> None:
    """Fill in the losses of some candidates on the rows that a mask over `order` names."""
    columns = rows.nonzero().flatten()
    if candidates and len(columns) > 0:
        taken = row_losses(candidates, order[columns])
        losses[torch.tensor(candidates)[:, None], columns] = taken


def _behind(losses: Tensor, leader: Tensor, seen: Tensor, sampled: Tensor) -> Tensor:
    """Return by how much each candidate's whole loss exceeds the leader's at least, [candidates].

    Args:
        losses: [candidates, rows], of which those seen are known.
        leader: [rows], all known.
        seen: [rows], a mask.
        sampled: [rows], a mask of those seen rows that stand for unseen ones.
    """
    behind = losses[:, seen].sum(dim=1) - leader.sum()
    if bool(seen.all()):
        return behind
    alike = ~seen.to(leader.device) & (leader <= leader[sampled].max())
    n_sampled, n_alike = int(sampled.sum()), int(alike.sum())
    differences = losses[:, sampled] - leader[sampled]
    error = differences.std(dim=1) * math.sqrt(n_alike * (1 + n_alike / n_sampled))
    expected = leader[alike].sum() + n_alike * differences.mean(dim=1)
    least = (expected - _LOSING_SIGMAS * error).clamp(min=0)
    return behind + least


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


def scale_from_importance(importance: Tensor, alpha: float) -> Tensor:
    """Return the normalised scales s [in_features] of an importance at one exponent.

    The square root is taken factor by factor, so that max·min cannot underflow; channels that were
    never active get the smallest scale.
    """
    s = importance.float().pow(alpha).clamp_(min=MIN_SCALE)
    return s / (s.max().sqrt() * s.min().sqrt())


def search_scale(
    weights: Sequence[Tensor],
    grids: Sequence[Grid],
    importance: Tensor,
    gram: Tensor,
    alphas: Sequence[float],
) -> ScaleChoice:
    """Choose the exponent with the smallest output error, summed over linears that share an input.

    Args:
        weights: of each linear, [out_features, in_features].
        grids: the grid that each weight will be rounded to.
        importance: [in_features], non-negative: AWQ's mean|x| or FAQ's blend.
        gram: [in_features, in_features] of the input, unscaled.
        alphas: candidate exponents, in increasing order; empty means no scaling, one means fixed.
    """
    if not alphas:
        return ScaleChoice(alpha=None, input_scale=None)
    if len(alphas) == 1:
        return ScaleChoice(alpha=alphas[0], input_scale=scale_from_importance(importance, alphas[0]))

    fast = has_fast_bfloat16(gram.device)
    ranked = contenders(
        _RowLosses(
            weights=weights,
            grids=grids,
            input_scales=[scale_from_importance(importance, alpha) for alpha in alphas],
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
            s = scale_from_importance(importance, alpha)
            pairs = zip(weights, grids, strict=True)
            losses.append(sum(gram_loss(weight, s, half, grid) for weight, grid in pairs))
        best = candidates[first_smallest(losses)]
    return ScaleChoice(alpha=best, input_scale=scale_from_importance(importance, best))


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
        for weight, weight_grid in zip(self.weights, self.grids, strict=True):
            if weight_grid == grid:
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


_LEAST = 1e-5
_LEAST_LAE_SCALE = 1e-2


def smoothquant_scale(largest: Tensor, weights: Sequence[Tensor], quant: QuantSection) -> Tensor:
    """Return SmoothQuant's scale [in_features]: the value `scale=smoothquant`.

    Args:
        largest: [in_features], the largest |x| of each channel.
        weights: of all linears that share the input, each [out_features, in_features].
        quant: the method.
    """
    alpha = quant.smoothing.alpha
    columns = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    activations = largest.clamp(min=_LEAST).pow(alpha)
    return (activations / columns.clamp(min=_LEAST).pow(1 - alpha)).clamp(min=_LEAST)


def lae_scale(largest: Tensor, weights: Sequence[Tensor], quant: QuantSection) -> Tensor:
    """Return the logarithmic activation equivalent [in_features]: the value `scale=lae`."""
    del weights, quant
    return (largest / torch.log2(2 + largest)).clamp(min=_LEAST_LAE_SCALE)
