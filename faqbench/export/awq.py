"""AWQ's layout, as AutoAWQ writes it for its GEMM kernels and vLLM reads it: 4 bits, with float16 scales.

    qweight   int32 [in, out / 8], eight codes of consecutive rows to a word, in the order 0 2 4 6 1 3 5 7
    qzeros    int32 [n_groups, out / 8], zero points in the same order
    scales    float16 [n_groups, out]

Symmetric codes are stored from 0 on, their zero point being 8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faqbench import __version__
from faqbench.export.fold import Shards, StoredModel
from faqbench.export.gptq import BITS, check_grids, from_zero, pack
from faqbench.quantization import QuantizedLinear

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def writer() -> str:
    """Return what packs."""
    return f"faqbench {__version__}"


def check(model: StoredModel) -> None:
    """Refuse anything but 4 bits, one group size and float16 scales."""
    check_grids(model, "awq")


def open_sink(folder: Path, model: StoredModel, most_bytes: int) -> Shards:
    """Begin the checkpoint of a model."""
    return Shards(folder, most_bytes, encode, model.config, settings(model))


def encode(linear: QuantizedLinear) -> dict[str, Tensor]:
    """Return the tensors of one linear."""
    codes, zero, scale = from_zero(linear)
    return {
        "qweight": pack(_interleaved(codes.T)),
        "qzeros": pack(_interleaved(zero.T)),
        "scales": scale.T.contiguous(),
    }


def settings(model: StoredModel) -> dict[str, Any]:
    """Return `quantization_config`."""
    grid = next(iter(model.grids.values()))
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": BITS,
        "group_size": grid.group_size,
        "zero_point": not grid.symmetric,
        "modules_to_not_convert": model.kept,
    }


def _interleaved(codes: Tensor) -> Tensor:
    """Return rows of codes [rows, out] with each eight of them in AWQ's order."""
    return codes.reshape(len(codes), -1, len(_ORDER))[:, :, torch.tensor(_ORDER)].flatten(1)
