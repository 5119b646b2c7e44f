"""The grid of a linear's input: what W8A8 and W4A4 add to the grid of its weight.

Legend: x a token's input [in] of a linear; s [in] the scale that its weight was multiplied by before
rounding (ones without one); c `clip_ratio`; Q rounding to the grid of `grid.py`, all channels one group.

    the linear multiplies s · Q(x / s) by its dequantized weight, which was divided by s
    token, dynamic    low, high = c · the extremes of x / s, per token
    tensor, static    low, high = c · the extremes of x / s over all calibration tokens, per linear
    symmetric         scale = max(high, -low) / (2^(bits-1) - 1), codes from -2^(bits-1)
    asymmetric        scale = (high - low) / (2^bits - 1), low at most 0 and high at least 0

A range of the whole batch at hand would let a request's score depend on what lies beside it; it is refused
when the configuration is composed. With `kv_bits` keys, behind their position embedding, and values are on
a grid too, as a cache would hold them, per token and head; with `bmm` also queries. Probabilities, the
output head and the embedding are not. Published W4A4 differs in all of that, so a record says it
(`describe_activations`). The walk knows nothing of the operands of attention.

Whether the roundings that read the quantized stream see it with its activations rounded
(`seen_by_rounding`) is a switch, since it changes the numbers of one and the same method: QuaRot's code
rounds weights first and activations after, GPTAQ's authors recommend the other.

Reference: SmoothQuant, arXiv 2211.10438, `fake_quant.py`, and QuaRot, arXiv 2404.00456, whose symmetric
grid leaves the lowest code almost unused and whose clip ratio multiplies both ends. Differs from
SmoothQuant's evaluation, which also rounds the outputs of q, k and v.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from faqbench.config.experiment import ActivationsSection, RoleName
from faqbench.models import OnlineRotation, Rotation
from faqbench.quantization.grid import Grid, range_parameters, round_straight_through, round_to_codes

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
        if any(t is not None and t.requires_grad for t in (x, self._scale)):
            return self._round(tokens.float(), learns=True).to(x.dtype).view_as(x)
        n_rows = len(tokens) if x.is_cuda else max(1, _CHUNK // x.shape[-1])
        rounded = torch.empty_like(tokens)
        for start in range(0, len(tokens), n_rows):
            rows = slice(start, start + n_rows)
            rounded[rows] = self._round(tokens[rows].float())
        return rounded.view_as(x)

    def _round(self, x: Tensor, *, learns: bool = False) -> Tensor:
        if self._scale is not None:
            x = x / self._scale
        if self._range is None:
            low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
        else:
            low, high = self._range[:1].expand(len(x), 1), self._range[1:].expand(len(x), 1)
        low, high = low.clamp(max=0) * self._clip_ratio, high.clamp(min=0) * self._clip_ratio
        parameters = range_parameters(low, high, self._grid)
        to_codes = round_straight_through if learns else round_to_codes
        codes = to_codes(x.unsqueeze(-2), parameters, self._grid).squeeze(-2)
        if learns:
            return codes * parameters.scale * (1.0 if self._scale is None else self._scale)
        rounded = codes.mul_(parameters.scale)
        return rounded if self._scale is None else rounded.mul_(self._scale)


class OperandGrid(nn.Module):
    """The change of queries, keys and values before they meet: R3, then their grids, per token and head."""

    def __init__(self, settings: ActivationsSection, rotation: Rotation | None) -> None:
        """Fix the grids.

        Args:
            settings: bits of keys and values, and of queries.
            rotation: R3; None for none.
        """
        super().__init__()
        assert settings.key_bits is not None
        keys = settings.model_copy(update={"bits": settings.key_bits, "dynamic": True})
        queries = settings.model_copy(update={"dynamic": True})
        self._keys = ActivationGrid(keys, None, None)
        self._queries = ActivationGrid(queries, None, None) if settings.bmm else nn.Identity()
        self._rotate = nn.Identity() if rotation is None else OnlineRotation(rotation)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all three, [batch, heads, tokens, head_dim] as they came."""
        query, key = self._rotate(query), self._rotate(key)
        return self._queries(query), self._keys(key), self._keys(value)


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
    on_grid = settings.targets if settings.bits is not None else ()
    has_keys = settings.key_bits is not None
    operands = {f"inputs of {role}": role in on_grid for role in get_args(RoleName)}
    operands |= {"queries": settings.bmm, "keys": has_keys, "values": has_keys}
    operands |= {"KV cache": has_keys, "probabilities": False, "output head": False}
    return {
        "bits": settings.bits,
        "kv_bits": settings.key_bits,
        "grid": "symmetric, largest code 2^(bits-1) - 1" if settings.symmetric else "asymmetric",
        "seen_by_rounding": settings.seen_by_rounding,
        "range": "per token, dynamic" if settings.dynamic else "per tensor, of the calibration tokens",
        "quantized": [name for name, is_on in operands.items() if is_on],
        "not_quantized": [name for name, is_on in operands.items() if not is_on],
    }
