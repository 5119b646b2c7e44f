"""Layouts of 4-bit codes in int32 words, with float16 scales [n_groups, out], which vLLM reads.

GPTQ's, as AutoGPTQ and GPTQModel write it:

    qweight   int32 [in / 8, out], eight codes of consecutive input channels to a word, the first lowest
    qzeros    int32 [n_groups, out / 8], eight zero points of consecutive rows
    g_idx     int32 [in], the group of each channel; ours are consecutive

`checkpoint_format: gptq`, the first version, stores zero points less one, and its readers disagree about a
zero point of 0; `gptq_v2` stores them as they are.

AWQ's, as AutoAWQ writes it for its GEMM kernels:

    qweight   int32 [in, out / 8], eight codes of consecutive rows to a word, in the order 0 2 4 6 1 3 5 7
    qzeros    int32 [n_groups, out / 8], zero points in the same order

Symmetric codes are stored from 0 on, their zero point being 8, which takes the place of any other: in these
layouts a symmetric grid is no smaller than an asymmetric one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from faqbench import __version__
from faqbench.config import UserError
from faqbench.export.fold import Part, Shards, StoredModel
from faqbench.quantization import QuantizedLinear

BITS = 4
_PER_WORD = 32 // BITS
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, kw_only=True)
class GPTQ:
    """GPTQ's layout, in one of its two versions.

    Attributes:
        name: `gptq` or `gptq_v2`, as `format=` and `checkpoint_format` have it.
    """

    name: str

    def writer(self) -> str:
        """Return what packs."""
        return f"faqbench {__version__}"

    def check(self, model: StoredModel) -> None:
        """Refuse anything but 4 bits, one group size and float16 scales."""
        check_grids(model, self.name)

    def bits_of(self, part: Part) -> int:
        """Return the bits of a part in the files."""
        return bits_of(part)

    def open_sink(self, folder: Path, model: StoredModel, most_bytes: int) -> Shards:
        """Begin the checkpoint of a model."""
        return Shards(folder, most_bytes, self.encode, model.config, self.settings(model))

    def encode(self, linear: QuantizedLinear) -> dict[str, Tensor]:
        """Return the tensors of one linear.

        Raises:
            UserError: for a zero point that the first version cannot hold.
        """
        codes, zero, scale = from_zero(linear)
        if self.name == "gptq":
            if bool((zero == 0).any()):
                raise UserError(
                    "format=gptq stores zero points less one, and readers disagree about those that are 0, "
                    "as some of this run's are; use format=gptq_v2, or run with symmetric=true."
                )
            zero = zero - 1
        width = codes.shape[1] // scale.shape[1]
        return {
            "qweight": pack(codes).T.contiguous(),
            "qzeros": pack(zero.T),
            "scales": scale.T.contiguous(),
            "g_idx": (torch.arange(codes.shape[1]) // width).to(torch.int32),
        }

    def settings(self, model: StoredModel) -> dict[str, Any]:
        """Return `quantization_config`."""
        grid = next(iter(model.grids.values()))
        kept = [name for name in model.kept if name != model.architecture.head]
        return {
            "quant_method": "gptq",
            "checkpoint_format": self.name,
            "bits": BITS,
            "group_size": grid.group_size,
            "sym": grid.symmetric,
            "desc_act": False,
            "lm_head": False,
            "pack_dtype": "int32",
            "meta": {"quantizer": [f"faqbench:{__version__}"]},
        } | ({"dynamic": {f"-:^{name}$".replace(".", r"\."): {} for name in kept}} if kept else {})


@dataclass(frozen=True, kw_only=True)
class AWQ:
    """AWQ's layout."""

    def writer(self) -> str:
        """Return what packs."""
        return f"faqbench {__version__}"

    def check(self, model: StoredModel) -> None:
        """Refuse anything but 4 bits, one group size and float16 scales."""
        check_grids(model, "awq")

    def bits_of(self, part: Part) -> int:
        """Return the bits of a part in the files."""
        return bits_of(part)

    def open_sink(self, folder: Path, model: StoredModel, most_bytes: int) -> Shards:
        """Begin the checkpoint of a model."""
        return Shards(folder, most_bytes, self.encode, model.config, self.settings(model))

    def encode(self, linear: QuantizedLinear) -> dict[str, Tensor]:
        """Return the tensors of one linear."""
        codes, zero, scale = from_zero(linear)
        return {
            "qweight": pack(_interleaved(codes.T)),
            "qzeros": pack(_interleaved(zero.T)),
            "scales": scale.T.contiguous(),
        }

    def settings(self, model: StoredModel) -> dict[str, Any]:
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


V1, V2, GEMM = GPTQ(name="gptq"), GPTQ(name="gptq_v2"), AWQ()


def check_grids(model: StoredModel, name: str) -> None:
    """Refuse grids that a layout of 4-bit words with float16 scales cannot hold.

    Raises:
        UserError: with the reason, and the nearest configuration that it can.
    """
    grids = set(model.grids.values())
    instead = "or use format=compressed-tensors, which holds it"
    if other := next((g.bits for g in grids if g.bits != BITS), None):
        raise UserError(
            f"format={name} holds {BITS} bits, and this run has linears of {other}: run it with "
            f"bits={BITS}, {instead}."
        )
    if len({g.group_size for g in grids}) > 1:
        raise UserError(
            f"format={name} holds one group size, and quant.overrides gives this run several: run it "
            f"without, {instead}."
        )
    if any(g.scale_dtype != "float16" for g in grids):
        raise UserError(
            f"format={name} stores scales in float16, and this run measured others: run it with "
            f"quant.scale_dtype=float16, {instead}."
        )
    for linear, (out_features, in_features) in model.architecture.linear_shapes().items():
        if out_features % _PER_WORD or in_features % _PER_WORD:
            raise UserError(
                f"format={name} packs {_PER_WORD} codes to a word, and {linear} of {out_features} rows and "
                f"{in_features} columns has no whole number of words; use format=compressed-tensors."
            )


def bits_of(part: Part) -> int:
    """Return the bits of a part in the files; g_idx, which follows from the rest, is not counted."""
    if isinstance(part, Tensor):
        return 8 * part.nbytes
    return BITS * part.qvalue.numel() + (16 + BITS) * part.scale.numel()


def from_zero(linear: QuantizedLinear) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes [out, in] from 0 on, zero points [out, n_groups], and float16 scales of that shape."""
    codes, scale = linear.qvalue.to(torch.int32), linear.scale.to(torch.float16)
    if linear.zero_point is not None:
        return codes, linear.zero_point.to(torch.int32), scale
    middle = 1 << (BITS - 1)
    return codes + middle, torch.full(scale.shape, middle, dtype=torch.int32), scale


def pack(codes: Tensor) -> Tensor:
    """Return rows of 4-bit codes [rows, n] as int32 words [rows, n / 8], the first code lowest."""
    lanes = codes.to(torch.int64).reshape(len(codes), -1, _PER_WORD)
    words = (lanes << (torch.arange(_PER_WORD) * BITS)).sum(dim=-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _interleaved(codes: Tensor) -> Tensor:
    """Return rows of codes [rows, out] with each eight of them in AWQ's order."""
    return codes.reshape(len(codes), -1, len(_ORDER))[:, :, torch.tensor(_ORDER)].flatten(1)
