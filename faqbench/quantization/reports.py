"""What a walk leaves behind: a report per linear, per block, and of the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from faqbench.models import Role
from faqbench.quantization.correct import Correction
from faqbench.quantization.grid import fake_quantize, quantize
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
        nearest_error: relative squared output error of plain rounding on the same grid. All four
            errors are against the original weight, on full precision inputs where the method gathers
            them (`reads_store`), else on those of the quantized stream; None where it gathers neither.
        scaled_error: the same after correction and scale, rounded to nearest.
        clipped_error: the same after correction, scale and clip, rounded to nearest.
        relative_error: the same of the result.
        correction_damping: that the correction needed; None when uncorrected.
        correction_strength: of the correction, given or searched; None likewise.
        gptq_damping: that the rounding needed to factor a Hessian; None for one that factors none.
        condition: of that damped Hessian.
        refine_start: mean squared error of the block's output, on the windows it was learned from, before
            the first step; None where blocks are not learned.
        refine_error: the same of what was kept; this and the next two None likewise.
        refine_steps: after which the kept iterate was reached; 0 is the start.
        refine_restarts: how often a descent met NaN or infinity and began again, slower.
        weight_error: relative squared error of the weight itself, of another tool's checkpoint; None for
            what is quantized here, whose output errors say more.
        storage_bits: of codes, scales and zero points.
        n_weights: out_features times in_features.
        seconds: of the linear's role, or of a learned block, shared equally among its linears.
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
    scaled_error: float | None
    clipped_error: float | None
    relative_error: float | None
    correction_damping: float | None
    correction_strength: float | None = None
    gptq_damping: float | None
    condition: float | None
    refine_start: float | None = None
    refine_error: float | None = None
    refine_steps: int | None = None
    refine_restarts: int | None = None
    weight_error: float | None = None
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
class RotationReport:
    """What a rotation made of the model that was then quantized.

    Attributes:
        sizes: of the rotation, by place.
        in_blocks_of: places whose size has no Hadamard matrix, and how many channels are mixed instead.
        untied_weights: of an output head that was one tensor with the embedding.
        logit_error: the largest difference between logits of the rotated model and the one as loaded.
        tolerance: what rounding in the weights' dtype may make of it.
    """

    sizes: Mapping[str, int]
    in_blocks_of: Mapping[str, int]
    untied_weights: int
    logit_error: float
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """The outcome of a walk.

    Attributes:
        linears: one report per quantized linear.
        blocks: one report per block; empty when nothing was traced.
        skipped_scales: scale mappings that were ruled out, with the reason, once per role.
        n_window_cuts: how many blocks had fewer later blocks than FAQ's window asks for.
        rotation: what was made of the model before; None where it was not rotated.
    """

    linears: tuple[LinearReport, ...]
    blocks: tuple[BlockReport, ...]
    skipped_scales: tuple[str, ...]
    n_window_cuts: int
    rotation: RotationReport | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the result should know of how it came about."""
        restarts = {r.block: r.refine_restarts for r in self.linears if r.refine_restarts}
        if not restarts:
            return ()
        blocks = ", ".join(f"{block} ({n} times)" for block, n in restarts.items())
        return (
            f"Learning met NaN or infinity and began again at a tenth of its rates in blocks: {blocks}.",
        )

    @property
    def bits_per_weight(self) -> float:
        """Bits of codes, scales and zero points, and of an untied head, per weight of the linears."""
        return self.storage_bits / sum(r.n_weights for r in self.linears)

    @property
    def storage_bits(self) -> int:
        """Bits of all quantized linears, and of a head that only a rotated model has, in 16 bits."""
        untied = 0 if self.rotation is None else self.rotation.untied_weights
        return sum(r.storage_bits for r in self.linears) + 16 * untied


def report_role(
    block: int,
    role: Role,
    result: RoleResult,
    originals: Mapping[str, Tensor],
    corrections: Mapping[str, Correction],
    stand_ins: Mapping[str, Tensor],
    gram: Tensor | None,
    seconds: float,
) -> list[LinearReport]:
    """Return the reports of one role's linears.

    Args:
        block: index of the decoder block.
        role: the role.
        result: its quantized linears.
        originals: their full precision weights, before any correction.
        corrections: what was scaled, clipped and rounded in their place; of a corrected role alone.
        stand_ins: the weights that came of it, dequantized.
        gram: of the role's full precision input; None when no activations were read.
        seconds: per linear.
    """
    reports = []
    for name, quantized in result.linears.items():
        scale, weight, correction = quantized.input_scale, originals[name], corrections.get(name)
        corrected = weight if correction is None else correction.weight
        errors: Mapping[str, float] = {}
        if gram is not None:
            errors = _stage_errors(name, weight, corrected, stand_ins[name], result, gram)
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
                nearest_error=errors.get("nearest"),
                scaled_error=errors.get("scaled"),
                clipped_error=errors.get("clipped"),
                relative_error=errors.get("final"),
                correction_damping=None if correction is None else correction.damping,
                correction_strength=None if correction is None else correction.strength,
                gptq_damping=result.damping.get(name),
                condition=result.condition.get(name),
                storage_bits=quantized.storage_bits(),
                n_weights=weight.numel(),
                seconds=seconds,
            )
        )
    return reports


def _stage_errors(
    name: str, original: Tensor, corrected: Tensor, final: Tensor, result: RoleResult, gram: Tensor
) -> dict[str, float]:
    """Return the relative output error after each stage; one that is off leaves things as they were."""
    quantized, limit = result.linears[name], result.limits[name]
    grid, scale = quantized.grid, quantized.input_scale
    is_nearest = result.rounds_to_nearest
    outcomes: dict[str, Tensor | None] = {"nearest": fake_quantize(original, grid)}
    outcomes["scaled"] = outcomes["clipped"] = outcomes["final"] = None
    if scale is not None or corrected is not original:
        outcomes["scaled"] = fake_quantize(corrected, grid, scale)
    if limit is not None:
        clipped = None if is_nearest else quantize(corrected, grid, input_scale=scale, limit=limit)
        outcomes["clipped"] = final if clipped is None else clipped.dequantize()
    if not is_nearest:
        outcomes["final"] = final
    stand_ins = [outcome for outcome in outcomes.values() if outcome is not None]
    measured = iter(relative_errors(original, stand_ins, gram))
    errors, last = {}, 0.0
    for stage, outcome in outcomes.items():
        last = last if outcome is None else next(measured)
        errors[stage] = last
    return errors
