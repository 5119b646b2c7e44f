"""Quantized weights as other tools lay them out in safetensors, read back as numbers.

For checkpoints whose own loader is not on this machine, and independent of what writes ours:

    compressed-tensors  weight_packed, weight_scale, weight_shape, weight_zero_point?; see that library
    gptq                qweight [in * bits / 32, out], qzeros [n_groups, out * bits / 32], scales, g_idx
    awq                 qweight [in, out / 8], qzeros [n_groups, out / 8], scales [n_groups, out]; 4 bits

In all of them codes lie in int32 words from the lowest bit up, several words being one row of bits; AWQ
alone puts the eight codes of a word in the order 0 2 4 6 1 3 5 7. GPTQ's first version stores zero points
less one, its second as they are. A weight is (code - zero) * scale, in float32.

This module knows torch and nothing else of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# The tensors of a quantized linear, in the place of its `weight`.
PARTS = {
    "compressed-tensors": ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
}
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the code of each column lies in its word


def layout_of(settings: Mapping[str, Any]) -> str:
    """Return the layout that a `quantization_config` describes, a key of `PARTS`.

    Raises:
        ValueError: with the reason, for one that is not read here.
    """
    method = str(settings.get("quant_method"))
    packing = str(settings.get("packing_format", ""))
    if method == "auto-round" and packing:
        method = "awq" if "awq" in packing else "gptq" if "gptq" in packing else packing
    if method == "compressed-tensors":
        formats = {settings.get("format")} | {
            group.get("format") for group in dict(settings.get("config_groups") or {}).values()
        }
        if formats - {"pack-quantized", None}:
            raise ValueError(f"compressed-tensors of format {settings.get('format')}")
    elif method == "awq" and str(settings.get("version", "gemm")).lower() != "gemm":
        raise ValueError(f"awq of version {settings['version']}")
    elif method not in PARTS:
        raise ValueError(f"quant_method {method}")
    return method


def decode(layout: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """Return the float32 weight [out_features, in_features] of one linear.

    Args:
        layout: a key of `PARTS`.
        parts: the linear's tensors, by the names there.
        settings: the checkpoint's `quantization_config`.
    """
    if layout == "compressed-tensors":
        return _decode_packed(parts)
    if layout == "awq":
        return _decode_awq(parts)
    return _decode_gptq(parts, settings)


def unpack(words: Tensor, bits: int, n_codes: int) -> Tensor:
    """Return the codes of rows of int32 words [rows, n_words] as int32 [rows, n_codes], none negative."""
    lanes = torch.arange(n_codes, device=words.device) * bits
    word, shift = lanes // 32, lanes % 32
    unsigned = words.to(torch.int64) & 0xFFFFFFFF
    low = unsigned[:, word] >> shift
    high = unsigned[:, (word + 1).clamp(max=words.shape[1] - 1)] << (32 - shift)
    return ((low | high) & ((1 << bits) - 1)).to(torch.int32)


def _decode_packed(parts: Mapping[str, Tensor]) -> Tensor:
    out_features, in_features = parts["weight_shape"].tolist()
    packed, scale = parts["weight_packed"], parts["weight_scale"]
    bits = packed.shape[1] * 32 // in_features
    codes = unpack(packed, bits, in_features)
    zero: Tensor | int = 1 << (bits - 1)
    if (stored := parts.get("weight_zero_point")) is not None:
        zero = unpack(stored.T.contiguous(), bits, out_features).T.unsqueeze(-1)
    return _dequantized(codes, zero, scale.view(out_features, -1))


def _decode_awq(parts: Mapping[str, Tensor]) -> Tensor:
    scale = parts["scales"]
    codes, zero = (_in_awq_order(parts[name], scale.shape[1]) for name in ("qweight", "qzeros"))
    return _dequantized(codes.T, zero.T.unsqueeze(-1), scale.T)


def _in_awq_order(words: Tensor, n_codes: int) -> Tensor:
    codes = unpack(words, 4, n_codes).view(len(words), -1, 8)
    return codes[:, :, list(_AWQ_ORDER)].view(len(words), n_codes)


def _decode_gptq(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    bits, scale = int(settings["bits"]), parts["scales"]
    out_features, n_words = scale.shape[1], len(parts["qweight"])
    codes = unpack(parts["qweight"].T.contiguous(), bits, n_words * 32 // bits)
    zero = unpack(parts["qzeros"], bits, out_features)
    if settings.get("checkpoint_format", "gptq") != "gptq_v2":
        zero = zero + 1
    if (group := parts.get("g_idx")) is None:
        return _dequantized(codes, zero.T.unsqueeze(-1), scale.T)
    group = group.long()
    return (codes - zero.T[:, group]).float() * scale.T[:, group].float()


def _dequantized(codes: Tensor, zero: Tensor | int, scale: Tensor) -> Tensor:
    """Return (codes - zero) * scale; scale is [out, n_groups], zero [out, n_groups, 1]."""
    grouped = codes.reshape(*scale.shape, -1)
    return ((grouped - zero).float() * scale.float().unsqueeze(-1)).view(len(scale), -1)
