"""FAQ's statistic: a blend of this block's activations with a preview of the blocks after it.

Legend: a_i [in] mean|x| of one role's input in block i; J the window; gamma the preview factor.

    p_i = sum_{j=1..J'} w_j a_{i+j}      J' = min(J, blocks after i); weights w sum to 1
    f_i = gamma a_i + (1 - gamma) p_i    the last block has nothing to preview: f_i = a_i

f takes the place of a in AWQ's search; everything else, the loss included, stays the current block's
own. gamma = 1 or J = 0 returns a itself, so FAQ is then AWQ to the bit.

Reference: FAQ, arXiv 2602.02538 (window-wise preview, soft aggregation). The formula above is our
reading of it: the paper's body was not available to us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from faqbench.config.experiment import PreviewSection

# How the blocks of the window are weighted, before normalisation; j counts from 1, the next block.
WEIGHTS: dict[str, Callable[[int], float]] = {
    "uniform": lambda j: 1.0,
    "linear": lambda j: 1.0 / j,
    "geometric": lambda j: 0.5**j,
}

# What a block's vector is divided by before blending; the result is brought back to a_i's own size.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda a: torch.ones((), dtype=a.dtype, device=a.device),
    "mean": lambda a: a.mean(),
    "max": lambda a: a.max(),
}


def _convex(current: Tensor, preview: Tensor, gamma: float) -> Tensor:
    return gamma * current + (1 - gamma) * preview


def _geometric(current: Tensor, preview: Tensor, gamma: float) -> Tensor:
    return current.pow(gamma) * preview.pow(1 - gamma)


def _max(current: Tensor, preview: Tensor, gamma: float) -> Tensor:
    return torch.maximum(current, (1 - gamma) * preview)


FUSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "convex": _convex,
    "geometric": _geometric,
    "max": _max,
}


def preview_statistic(current: Tensor, later: Sequence[Tensor], preview: PreviewSection) -> Tensor:
    """Return FAQ's statistic f [in_features] of one role of one block.

    Args:
        current: [in_features], mean|x| of this block.
        later: the vectors [in_features] of the blocks after this one, nearest first; only the first
            `preview.window` are read, and an empty sequence returns `current` itself.
        preview: window, gamma, weights, norm and fuse.
    """
    window = later[: preview.window]
    if not window or preview.gamma == 1.0:
        return current
    weights = [WEIGHTS[preview.weights](j) for j in range(1, len(window) + 1)]
    norm = NORMS[preview.norm]
    size = norm(current)
    blend = torch.zeros_like(current)
    for weight, vector in zip(weights, window, strict=True):
        blend += weight / sum(weights) * _rescaled(vector, norm(vector), size)
    return FUSES[preview.fuse](current, blend, preview.gamma)


def _rescaled(vector: Tensor, own: Tensor, wanted: Tensor) -> Tensor:
    """Bring a vector to another's size; a vector of zeros stays one."""
    return vector * torch.where(own > 0, wanted / own, torch.ones_like(own))
