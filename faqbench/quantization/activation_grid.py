"""The grid of a linear's input: what W8A8 and W4A4 add to the grid of its weight.

Legend: x a token's input [in] of a linear; s [in] the scale that its weight was multiplied by before
rounding (ones without one); c `clip_ratio`; Q rounding to the grid of `grid.py`, all channels one group.

    the linear multiplies s · Q(x / s) by its dequantized weight, which was divided by s
    token, dynamic    low, high = c · the extremes of x / s, per token
    tensor, static    low, high = c · the extremes of x / s over all calibration tokens, per linear
    symmetric         scale = max(high, -low) / (2^(bits-1) - 1), codes from -2^(bits-1)
    asymmetric        scale = (high - low) / (2^bits - 1), low at most 0 and high at least 0

A range of the whole batch at hand would let a request's score depend on what lies beside it; it is refused
when the configuration is composed. The inputs of all linears of the targeted roles are quantized; queries,
keys, values and probabilities inside attention, the KV cache, the output head and the embedding are not
(`describe_activations` says so in the record): published W4A4 differs in that.

Whether the roundings that read the quantized stream see it with its activations rounded
(`seen_by_rounding`) is a switch, since it changes the numbers of one and the same method: QuaRot's code
rounds weights first and activations after, GPTAQ's authors recommend the other.

Reference: SmoothQuant, arXiv 2211.10438, `fake_quant.py`, and QuaRot, arXiv 2404.00456, whose symmetric
grid leaves the lowest code almost unused and whose clip ratio multiplies both ends. Differs from
SmoothQuant's evaluation, which also rounds the outputs of q, k and v.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from faqbench.config.experiment import ActivationsSection
from faqbench.quantization.grid import Grid, range_parameters, round_to_codes

# Numbers that are rounded together on a CPU: they stay in its second-level cache.
_CHUNK = 2**17


class ActivationGrid(nn.Module):
    """The step x -> s · Q(x / s) that a linear takes before it multiplies."""

    def __init__(
        self, settings: ActivationsSection, input_scale: Tensor | None, input_range: Tensor | None
    ) -> None:
        """Fix the grid.

        Args:
            settings: bits and kind of the grid.
            input_scale: [in_features] that the weight was multiplied by before rounding; None for ones.
            input_range: [2], the extremes of x / s over the calibration tokens; None where each token
                has a range of its own.
        """
        super().__init__()
        assert settings.bits is not None
        assert (input_range is None) == settings.dynamic
        self._grid = Grid(bits=settings.bits, group_size=-1, symmetric=settings.symmetric)
        self._clip_ratio = settings.clip_ratio
        self._scale = input_scale
        self._range = input_range

    def forward(self, x: Tensor) -> Tensor:
        """Round an input [..., in_features], in its own dtype."""
        tokens = x.reshape(-1, x.shape[-1])
        n_rows = len(tokens) if x.is_cuda else max(1, _CHUNK // x.shape[-1])
        rounded = torch.empty_like(tokens)
        for start in range(0, len(tokens), n_rows):
            rows = slice(start, start + n_rows)
            rounded[rows] = self._round(tokens[rows].float())
        return rounded.view_as(x)

    def _round(self, x: Tensor) -> Tensor:
        if self._scale is not None:
            x = x / self._scale
        if self._range is None:
            low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
        else:
            low, high = self._range[:1].expand(len(x), 1), self._range[1:].expand(len(x), 1)
        low, high = low.clamp(max=0) * self._clip_ratio, high.clamp(min=0) * self._clip_ratio
        parameters = range_parameters(low, high, self._grid)
        codes = round_to_codes(x.unsqueeze(-2), parameters, self._grid).squeeze(-2)
        rounded = codes.mul_(parameters.scale)
        return rounded if self._scale is None else rounded.mul_(self._scale)


def input_range(low: Tensor, high: Tensor, input_scale: Tensor | None) -> Tensor:
    """Return the extremes [2] over all channels of an input divided by its scale.

    Args:
        low: [in_features], the least of each channel over the calibration tokens.
        high: [in_features], the largest.
        input_scale: [in_features], positive; None for ones.
    """
    if input_scale is not None:
        low, high = low / input_scale, high / input_scale
    return torch.stack([low.amin(), high.amax()])


def describe_activations(settings: ActivationsSection) -> dict[str, object]:
    """Return what a record says of quantized activations: which operands are on the grid, and on which."""
    return {
        "bits": settings.bits,
        "grid": "symmetric, largest code 2^(bits-1) - 1" if settings.symmetric else "asymmetric",
        "seen_by_rounding": settings.seen_by_rounding,
        "range": "per token, dynamic"
        if settings.dynamic
        else "per tensor, of the calibration tokens",
        "quantized": [f"inputs of {role}" for role in settings.targets],
        "not_quantized": [
            "queries, keys, values and probabilities of attention",
            "KV cache",
            "head",
        ],
    }
