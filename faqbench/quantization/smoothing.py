"""Scales in closed form, of the largest activation of each channel: SmoothQuant's and LAE's.

Legend: a [in] the largest |x| of each channel over the calibration tokens; w [in] the largest |W| of each
column over all linears that share the input; s [in] the scale that weights are multiplied by and inputs
divided by.

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

from collections.abc import Sequence

import torch
from torch import Tensor

from faqbench.config.experiment import QuantSection

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
