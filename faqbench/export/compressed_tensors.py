"""compressed-tensors, `pack-quantized`: what llm-compressor writes and vLLM and transformers load.

    weight_packed       int32 [out, in * bits / 32], codes packed densely along a row by the library itself
    weight_scale        [out, n_groups], in the dtype that the run measured
    weight_zero_point   int32 [out * bits / 32, n_groups], absent when symmetric
    weight_shape        [out, in]

Codes and zero points are signed there, ours less 2^(bits-1). Linears of one grid are one config group;
with several grids each group lists its linears by name. Widths of 2 to 8 bits are all held; since 0.18 the
library packs 3, 5, 6 and 7 bits densely, which older readers do not know, so its version is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faqbench.export.fold import Part, Shards, StoredModel
from faqbench.quantization import Grid, QuantizedLinear
from faqbench.stages import library_version


def writer() -> str:
    """Return the library that packs, with its version."""
    return f"compressed-tensors {library_version('compressed-tensors')}"


def check(model: StoredModel) -> None:
    """Every grid is held."""


def bits_of(part: Part) -> int:
    """Return the bits of a part in the files; rows of codes and columns of zero points are whole words."""
    if isinstance(part, Tensor):
        return 8 * part.nbytes
    (out_features, in_features), bits = part.qvalue.shape, part.grid.bits
    n_words = out_features * _n_words(in_features * bits)
    if part.zero_point is not None:
        n_words += part.scale.shape[1] * _n_words(out_features * bits)
    return 32 * n_words + (32 if part.grid.scale_dtype == "float32" else 16) * part.scale.numel()


def _n_words(n_bits: int) -> int:
    return -(-n_bits // 32)


def open_sink(folder: Path, model: StoredModel, most_bytes: int) -> Shards:
    """Begin the checkpoint of a model."""
    return Shards(folder, most_bytes, encode, model.config, settings(model))


def encode(linear: QuantizedLinear) -> dict[str, Tensor]:
    """Return the tensors of one linear, by the last part of their names."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    bits = linear.grid.bits
    assert linear.grid.scale_dtype is not None
    tensors = {
        "weight_packed": pack_to_int32(_signed(linear.qvalue, linear.grid), bits),
        "weight_scale": linear.scale.to(getattr(torch, linear.grid.scale_dtype)),
        "weight_shape": torch.tensor(linear.qvalue.shape),
    }
    if linear.zero_point is not None:
        zero = _signed(linear.zero_point, linear.grid)
        tensors["weight_zero_point"] = pack_to_int32(zero, bits, packed_dim=0)
    return tensors


def settings(model: StoredModel) -> dict[str, Any]:
    """Return `quantization_config`, as the library itself spells it."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme

    grids = list(dict.fromkeys(model.grids.values()))
    groups = {
        f"group_{index}": QuantizationScheme(
            targets=["Linear"] if len(grids) == 1 else _names(model.grids, grid),
            weights=_arguments(grid),
            format="pack-quantized",
        )
        for index, grid in enumerate(grids)
    }
    config = QuantizationConfig(
        config_groups=groups, format="pack-quantized", quantization_status="compressed", ignore=model.kept
    )
    result: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    # Else transformers (5.24, with 0.19 and 0.20 of the library) keeps weights packed, for which it expects
    # zero points as they were before they were packed.
    has_zeros = any(not grid.symmetric for grid in grids)
    return result | ({"dequantize": True} if has_zeros else {})


def _arguments(grid: Grid) -> dict[str, object]:
    per_row = grid.group_size == -1
    return {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": grid.symmetric,
        "strategy": "channel" if per_row else "group",
        "group_size": None if per_row else grid.group_size,
        "dynamic": False,
    }


def _names(grids: Mapping[str, Grid], grid: Grid) -> Sequence[str]:
    return [name for name, other in grids.items() if other == grid]


def _signed(codes: Tensor, grid: Grid) -> Tensor:
    """Return codes as int8 in [-2^(bits-1), 2^(bits-1)), as symmetric ones are already."""
    if grid.symmetric:
        return codes
    return (codes.to(torch.int16) - (1 << (grid.bits - 1))).to(torch.int8)
