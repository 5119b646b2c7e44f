"""What a walk leaves behind: a report per linear, per block, and of the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from faqbench.models import Role
from faqbench.quantization.grid import fake_quantize
from faqbench.quantization.method import RoleResult, relative_errors


@dataclass(frozen=True, kw_only=True)
class LinearReport:
    """What happened to one linear; a row of `layers.parquet`.

    Attributes:
        block: index of the decoder block.
        role: qkv, o, gate_up or down.
        linear: name relative to the block.
        bits: of its codes.
        group_size: input channels per scale.
        alpha: the exponent of the scale; None when unscaled.
        clipped_frac: share of weights outside their group's limit.
        scale_range: largest over smallest input scale; 1 when unscaled.
        nearest_error: relative squared output error of plain rounding on the same grid.
        relative_error: relative squared output error of the result, on full precision inputs.
        correction_damping: that the correction needed; None when uncorrected.
        gptq_damping: that GPTQ needed; None when rounded to nearest.
        condition: of GPTQ's damped Hessian.
        storage_bits: of codes, scales and zero points.
        n_weights: out_features times in_features.
        seconds: of the linear's role, shared equally among its linears.
    """

    block: int
    role: str
    linear: str
    bits: int
    group_size: int
    alpha: float | None
    clipped_frac: float
    scale_range: float
    nearest_error: float | None
    relative_error: float | None
    correction_damping: float | None
    gptq_damping: float | None
    condition: float | None
    storage_bits: int
    n_weights: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """How far a block's output is from full precision, on the traced windows.

    Attributes:
        block: index.
        local_error: relative squared error of the quantized block on full precision inputs.
        relative_error: the same on the inputs that the quantized blocks before it give.
        cosine: mean cosine of the two streams' output vectors.
    """

    block: int
    local_error: float
    relative_error: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """The outcome of a walk.

    Attributes:
        linears: one report per quantized linear.
        blocks: one report per block; empty when nothing was traced.
        skipped_scales: scale mappings that were ruled out, with the reason, once per role.
        n_window_cuts: how many blocks had fewer later blocks than FAQ's window asks for.
    """

    linears: tuple[LinearReport, ...]
    blocks: tuple[BlockReport, ...]
    skipped_scales: tuple[str, ...]
    n_window_cuts: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of codes, scales and zero points per weight of the quantized linears."""
        return self.storage_bits / sum(r.n_weights for r in self.linears)

    @property
    def storage_bits(self) -> int:
        """Bits of all quantized linears."""
        return sum(r.storage_bits for r in self.linears)


def report_role(
    block: int,
    role: Role,
    result: RoleResult,
    originals: Mapping[str, Tensor],
    gram: Tensor | None,
    correction_damping: float | None,
    seconds: float,
) -> list[LinearReport]:
    """Return the reports of one role's linears.

    Args:
        block: index of the decoder block.
        role: the role.
        result: its quantized linears.
        originals: their full precision weights, before any correction.
        gram: of the role's full precision input; None when no activations were read.
        correction_damping: the largest that a correction needed; None without one.
        seconds: per linear.
    """
    reports = []
    for name, quantized in result.linears.items():
        scale, weight = quantized.input_scale, originals[name]
        nearest = error = None
        if gram is not None:
            stand_ins = [fake_quantize(weight, quantized.grid), quantized.dequantize()]
            nearest, error = relative_errors(weight, stand_ins, gram)
        reports.append(
            LinearReport(
                block=block,
                role=role.name,
                linear=name,
                bits=quantized.grid.bits,
                group_size=quantized.grid.group_size,
                alpha=result.alpha,
                clipped_frac=result.clipped_frac[name],
                scale_range=1.0 if scale is None else float(scale.max() / scale.min()),
                nearest_error=nearest,
                relative_error=error,
                correction_damping=correction_damping,
                gptq_damping=result.damping.get(name),
                condition=result.condition.get(name),
                storage_bits=quantized.storage_bits(),
                n_weights=weight.numel(),
                seconds=seconds,
            )
        )
    return reports
