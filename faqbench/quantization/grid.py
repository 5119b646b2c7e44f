"""The integer grid: groups of input channels per output row, and the codes of a weight on it.

Legend: W [out, in] weight, n_groups = in / group_size, qmax the largest code.

    asymmetric   scale = max(max(W) - min(W), 1e-5) / (2^bits - 1)
                 zero  = clamp(-round(min(W) / scale), 0, 2^bits - 1)
                 q     = clamp(round(W / scale) + zero, 0, 2^bits - 1)
    symmetric    scale = max(max|W|, 1e-5) / range
                 q     = clamp(round(W / scale), -2^(bits-1), 2^(bits-1) - 1)

    range of     signed      2^(bits-1) - 1    of 4 bits 7: the lowest code is not used
    symmetric    half_range  2^(bits-1) - 1/2  of 4 bits 7.5: every code is, and the highest is clamped
    codes        full_range  -2^(bits-1) where the largest value is positive, else 2^(bits-1): of 4 bits
                             8, the largest value always on the lowest code, by a scale of either sign

A scale is then put into the dtype that a checkpoint stores it in, where there is one, before any code is
made with it: what is measured is what is stored.

The asymmetric form is llm-awq's; signed symmetric codes are AutoAWQ's and GPTQ's, half_range is
compressed-tensors', full_range auto-round's. With asymmetric codes a group whose
values all have one sign still stretches its range to hold zero only as far as the clamp of `zero` does,
as in the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from faqbench.config import UserError
from faqbench.config.experiment import QuantSection

MIN_RANGE = 1e-5
SymmetricGrid = Literal["signed", "half_range", "full_range"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Bits, group size and symmetry of one linear's grid; group_size -1 is one group per row.

    `symmetric_grid` says how symmetric codes are spread over a group's range; it decides scales only.
    `scale_dtype` names the dtype that scales are stored in; None leaves them in float32.
    """

    bits: int
    group_size: int
    symmetric: bool
    symmetric_grid: SymmetricGrid = "signed"
    scale_dtype: str | None = None

    @property
    def code_range(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        if self.symmetric:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    def group_width(self, in_features: int) -> int:
        """Return how many input channels share one scale."""
        return in_features if self.group_size == -1 else self.group_size

    def check(self, linear: str, in_features: int) -> None:
        """Refuse a group size that does not divide a linear's input.

        Raises:
            UserError: naming the linear, its in_features and the group sizes that do divide it.
        """
        if self.group_size == -1 or (self.group_size > 0 and in_features % self.group_size == 0):
            return
        legal = [n for n in range(16, in_features + 1) if in_features % n == 0 and n % 8 == 0]
        raise UserError(
            f"group_size={self.group_size} does not divide in_features={in_features} of {linear}; "
            f"sizes that do: {', '.join(map(str, legal or [in_features]))}, or -1 for one group per row."
        )


@dataclass(frozen=True, kw_only=True)
class GroupParameters:
    """Scale and zero point of every group.

    Attributes:
        scale: [..., n_groups], positive but for `full_range` codes.
        zero_point: [..., n_groups], whole numbers in a float tensor; None when symmetric.
    """

    scale: Tensor
    zero_point: Tensor | None


@dataclass(frozen=True, kw_only=True)
class QuantizedLinear:
    """A linear's weight as codes.

    dequantized weight = (qvalue - zero_point) * scale * output_scale / input_scale

    Attributes:
        qvalue: uint8 (asymmetric) or int8 (symmetric) [out_features, in_features].
        scale: float32 [out_features, n_groups], numbers that the grid's dtype holds.
        zero_point: uint8 [out_features, n_groups], or None when symmetric.
        input_scale: float32 [in_features] that the weight was multiplied by before rounding, or None.
        output_scale: float32 [out_features] that `scale` was divided by when it was stored, since the
            linear that reads these rows was multiplied by it; None where nothing reads them scaled, or
            scales are not stored.
        grid: bits, group size, symmetry and the dtype of stored scales.
        input_range: float32 [2], the extremes of the scaled input over the calibration tokens, for a static
            grid of activations; None for other methods.
    """

    qvalue: Tensor
    scale: Tensor
    zero_point: Tensor | None
    input_scale: Tensor | None
    output_scale: Tensor | None = None
    grid: Grid
    input_range: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Return the float32 weight [out_features, in_features] that stands in for the original."""
        out, n_groups = self.scale.shape
        q = self.qvalue.view(out, n_groups, -1).float()
        if self.zero_point is not None:  # in place: of a large weight every copy is fresh memory to clear
            q.sub_(self.zero_point.float().unsqueeze(-1))
        weight = q.mul_(self.scale.unsqueeze(-1)).view(out, -1)
        if self.output_scale is not None:
            weight.mul_(self.output_scale.unsqueeze(-1))
        return weight if self.input_scale is None else weight.div_(self.input_scale)

    def storage_bits(self) -> int:
        """Return the bits a packed checkpoint needs: codes, stored scales, zero points at `bits`.

        Scales whose dtype is left open count 16 bits each.
        """
        scale_bits = 32 if self.grid.scale_dtype == "float32" else 16
        per_group = scale_bits + (0 if self.zero_point is None else self.grid.bits)
        return self.qvalue.numel() * self.grid.bits + self.scale.numel() * per_group


@dataclass(frozen=True, kw_only=True)
class RoundInput:
    """What a rounding may know of a weight's input; what the method does not read is None.

    Attributes:
        gram: [in_features, in_features] of the scaled input, in full precision.
        hessian: the same on the quantized stream.
        cross: D [in_features, in_features] = (X - X̂)'X̂ / n of the scaled input X̂ on the quantized stream
            and X in full precision, as far as no correction has made up for it.
    """

    gram: Tensor | None = None
    hessian: Tensor | None = None
    cross: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A weight on its grid, as every rounding gives it.

    Attributes:
        codes: less their zero point, [rows, n_groups, width].
        parameters: scale and zero point per group.
        damping: relative to the mean of a Hessian's diagonal; None where no Hessian was factored.
        condition: of the damped Hessian; None likewise.
    """

    codes: Tensor
    parameters: GroupParameters
    damping: float | None = None
    condition: float | None = None


def group_parameters(grouped: Tensor, grid: Grid) -> GroupParameters:
    """Return each group's scale and zero point.

    Args:
        grouped: [..., n_groups, width], a weight cut into groups.
        grid: the grid.
    """
    # Not aminmax, nor clamp with tensors below: on CPU they take several times as long.
    return range_parameters(grouped.amin(dim=-1), grouped.amax(dim=-1), grid)


def range_parameters(low: Tensor, high: Tensor, grid: Grid) -> GroupParameters:
    """Return the scale and zero point of groups whose values span [low, high], both [..., n_groups].

    Gradients reach the scale; the zero point, which is rounded, has none.
    """
    qmax = grid.code_range[1]
    # A tensor, since CUDA multiplies by the reciprocal of a number: the last bit of a scale decides the
    # zero point of a group that is clipped on both sides, whose low / scale lies halfway.
    divisor = low.new_full((), qmax)
    if grid.symmetric:
        largest = torch.maximum(high, -low).clamp_(min=MIN_RANGE)
        if grid.symmetric_grid == "half_range":
            divisor += 0.5
        elif grid.symmetric_grid == "full_range":
            divisor = torch.where(high > -low, -(divisor + 1), divisor + 1)
        scale = stored_scale(largest.div_(divisor), grid)
        return GroupParameters(scale=scale, zero_point=None)
    scale = stored_scale((high - low).clamp_(min=MIN_RANGE).div_(divisor), grid)
    zero_point = low.detach().div(scale.detach()).round_().neg_().clamp_(0, qmax)
    return GroupParameters(scale=scale, zero_point=zero_point)


def stored_scale(scale: Tensor, grid: Grid) -> Tensor:
    """Return float32 scales as the numbers that the grid's dtype holds; never zero or infinite."""
    if grid.scale_dtype is None:
        return scale
    dtype = getattr(torch, grid.scale_dtype)
    facts = torch.finfo(dtype)
    size = scale.abs().clamp_(min=facts.smallest_normal * facts.eps, max=facts.max)
    return size.copysign_(scale).to(dtype).float()


def round_to_codes(grouped: Tensor, parameters: GroupParameters, grid: Grid) -> Tensor:
    """Return the codes of a grouped weight, less their zero point, as floats of the same shape."""
    low, high = grid.code_range
    codes = grouped.div(parameters.scale.unsqueeze(-1)).round_()
    if parameters.zero_point is None:
        return codes.clamp_(low, high)
    zero = parameters.zero_point.unsqueeze(-1)
    return clamp_between(codes, low - zero, high - zero)


def round_straight_through(
    grouped: Tensor, parameters: GroupParameters, grid: Grid, offset: Tensor | None = None
) -> Tensor:
    """Return `round_to_codes` of a grouped weight, with gradients of the weight, scales and zero points.

    An offset of any shape of as many elements, in codes, is added before rounding, and has one too.
    """
    zero = parameters.zero_point
    codes: Tensor = StraightThrough.apply(  # type: ignore[no-untyped-call]
        grouped,
        parameters.scale,
        torch.zeros_like(parameters.scale) if zero is None else zero,
        offset,
        grid,
    )
    return codes


def learned_zero_point(low: Tensor, parameters: GroupParameters) -> GroupParameters:
    """Return the same numbers, whose zero points pass gradients on to low and scale as if not rounded."""
    if parameters.zero_point is None:
        return parameters
    exact = -low / parameters.scale
    return replace(parameters, zero_point=parameters.zero_point.detach() + (exact - exact.detach()))


class StraightThrough(torch.autograd.Function):
    """clamp(round(x / Δ + V), least - z, most - z) for x [out, n_groups, width]; round has gradient 1."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, offset: Tensor | None, grid: Grid
    ) -> Tensor:
        """Return the codes, as floats."""
        least, most = (end - zero.unsqueeze(-1) for end in grid.code_range)
        ratio = x / scale.unsqueeze(-1)
        codes = ratio.clone() if offset is None else ratio + offset.view_as(ratio)
        codes.round_()
        clamped = clamp_between(codes.clone(), least, most)
        ctx.save_for_backward(ratio, scale, clamped == codes)
        ctx.shape = None if offset is None else offset.shape
        return clamped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, Δ and V."""
        ratio, scale, is_inside = ctx.saved_tensors
        passed = gradients[0] * is_inside
        by_scale = -(passed * ratio).sum(dim=-1) / scale
        by_x = passed / scale.unsqueeze(-1) if ctx.needs_input_grad[0] else None
        by_zero = (passed - gradients[0]).sum(dim=-1) if ctx.needs_input_grad[2] else None
        return by_x, by_scale, by_zero, None if ctx.shape is None else passed.view(ctx.shape), None


def fake_quantize(weight: Tensor, grid: Grid, input_scale: Tensor | None = None) -> Tensor:
    """Return the weight rounded to its own grid, as floats of the same shape [out, in].

    With an input scale [in] it is multiplied by it before, and divided after rounding.
    """
    scaled = weight if input_scale is None else weight * input_scale
    grouped = scaled.view(scaled.shape[0], -1, grid.group_width(scaled.shape[1]))
    parameters = group_parameters(grouped, grid)
    codes = round_to_codes(grouped, parameters, grid)
    rounded = codes.mul_(parameters.scale.unsqueeze(-1)).view_as(weight)
    return rounded if input_scale is None else rounded.div_(input_scale)


def quantize(
    weight: Tensor, grid: Grid, *, input_scale: Tensor | None = None, limit: Tensor | None = None
) -> QuantizedLinear:
    """Round a weight to the nearest codes.

    Args:
        weight: [out_features, in_features].
        grid: the grid; its group size divides in_features.
        input_scale: [in_features], multiplied into the weight first.
        limit: [out_features, n_groups], clamps each group of the scaled weight to ±limit.
    """
    rounded = _round_groups(scaled_groups(weight, grid, input_scale), grid, limit)
    return pack_codes(rounded.codes, rounded.parameters, grid, input_scale)


def round_nearest(
    weight: Tensor, known: object, grid: Grid, quant: QuantSection, limit: Tensor | None
) -> Rounded:
    """Round a scaled weight [rows, in_features] to the nearest codes: the value `round=nearest`."""
    del known, quant
    return _round_groups(scaled_groups(weight, grid, None), grid, limit)


def _round_groups(grouped: Tensor, grid: Grid, limit: Tensor | None) -> Rounded:
    if limit is not None:
        grouped = clamp_groups(grouped, limit)
    parameters = group_parameters(grouped, grid)
    return Rounded(codes=round_to_codes(grouped, parameters, grid), parameters=parameters)


def scaled_groups(weight: Tensor, grid: Grid, input_scale: Tensor | None) -> Tensor:
    """Return the float32 weight times its input scale as [out_features, n_groups, width]."""
    scaled = weight.float()
    if input_scale is not None:
        scaled = scaled * input_scale
    return scaled.view(weight.shape[0], -1, grid.group_width(weight.shape[1]))


def clamp_groups(grouped: Tensor, limit: Tensor) -> Tensor:
    """Clamp every group to its own ±limit."""
    bound = limit.unsqueeze(-1)
    clamped = torch.maximum(grouped, -bound)
    return torch.minimum(clamped, bound, out=clamped)


def clamp_between(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clamp values in place between two tensors that broadcast to them."""
    torch.maximum(values, low, out=values)
    return torch.minimum(values, high, out=values)


def pack_codes(
    codes: Tensor, parameters: GroupParameters, grid: Grid, input_scale: Tensor | None
) -> QuantizedLinear:
    """Make a `QuantizedLinear` of codes less their zero point [out_features, n_groups, width]."""
    zero = parameters.zero_point
    if zero is not None:
        codes = codes + zero.unsqueeze(-1)
    return QuantizedLinear(
        qvalue=codes.to(torch.int8 if zero is None else torch.uint8).view(codes.shape[0], -1),
        scale=parameters.scale,
        zero_point=None if zero is None else zero.to(torch.uint8),
        input_scale=input_scale,
        grid=grid,
    )
