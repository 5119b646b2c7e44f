"""Quantized weights as other tools lay them out in safetensors, read back as numbers.

For checkpoints whose own loader is not on this machine, and independent of what writes ours:

    compressed-tensors  weight_packed, weight_scale, weight_shape, weight_zero_point?, weight_g_idx?
    int-quantized       weight of int8, weight_scale, weight_zero_point?: compressed-tensors unpacked
    gptq                qweight [in * bits / 32, out], qzeros [n_groups, out * bits / 32], scales, g_idx
    awq                 qweight [in, out / 8], qzeros [n_groups, out / 8], scales [n_groups, out]; 4 bits
    bnb-4bit            weight [n / 2, 1], absmax per block of 64 weights, quantized itself at times
    bnb-8bit            weight of int8, SCB [out], the largest weight of each row
    hqq                 W_q, the codes of one group in a row or a column, scale, zero, its settings

In the first, third and fourth codes lie in int32 words from the lowest bit up, several words being one
row of bits; AWQ alone puts the eight codes of a word in the order 0 2 4 6 1 3 5 7, and compressed-tensors
before 0.18 leaves bits unused where codes do not fill a word. GPTQ's first version stores zero points less
one, its second as they are. A weight is (code - zero) * scale, in float32.

This module knows torch and nothing else of this package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

# The tensors of a quantized linear, in the place of its `weight`; by the first of them it is known.
PARTS = {
    "compressed-tensors": (
        "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx",
    ),
    "int-quantized": ("weight_scale", "weight", "weight_zero_point"),
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "bnb-4bit": (
        "weight.absmax", "weight", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
        "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4",
    ),
    "bnb-8bit": ("SCB", "weight", "weight_format"),
    "hqq": (
        "W_q", "scale", "zero", "shape", "packing", "nbits", "group_size", "axis", "unpack_view_dtype",
        "view_as_float", "quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict",
        "stores_quant_config", "channel_wise", "optimize", "round_zero",
    ),
}  # fmt: skip
# Those that a linear may lack.
_OPTIONAL = {
    "weight_zero_point", "weight_g_idx", "g_idx", "weight.nested_absmax", "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4", "weight_format",
    *PARTS["hqq"][5:],
}  # fmt: skip
# Those that a loader could do without.
NOT_COUNTED = ("weight_shape", "g_idx", "weight_format", "weight.quant_map", "weight.nested_quant_map")
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the code of each column lies in its word
_BNB_BLOCK = 64


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a `quantization_config` says of most linears.

    Attributes:
        layout: a key of `PARTS`.
        method: the word for how codes were chosen, as far as it says.
        bits: of a code.
        group_size: input channels that share a scale; -1 is one group per row.
        symmetric: whether there are no zero points.
        made_by: the tool and its version, where it says.
    """

    layout: str
    method: str
    bits: int
    group_size: int
    symmetric: bool
    made_by: str | None


def stated(settings: Mapping[str, Any]) -> Stated:
    """Return what a `quantization_config` says.

    Raises:
        ValueError: with the reason, for a layout that is not read here.
    """
    layout, method = layout_of(settings), str(settings["quant_method"])
    if method == "compressed-tensors":
        weights = next(iter(settings["config_groups"].values()))["weights"]
        grid = (weights["num_bits"], weights.get("group_size") or -1, weights["symmetric"])
    elif method == "hqq":
        weights = settings["quant_config"]["weight_quant_params"]
        grid = (weights["nbits"], weights["group_size"] or -1, False)
    elif method == "bitsandbytes":
        grid = (4, _BNB_BLOCK, True) if layout == "bnb-4bit" else (8, -1, True)
    else:
        symmetric = settings.get("sym", not settings.get("zero_point", True))
        grid = (settings["bits"], settings.get("group_size", 128), symmetric)
    bits, group_size, symmetric = grid
    return Stated(
        layout=layout,
        method=method,
        bits=int(bits),
        group_size=int(group_size),
        symmetric=bool(symmetric),
        made_by=_made_by(settings),
    )


def _made_by(settings: Mapping[str, Any]) -> str | None:
    quantizers = (settings.get("meta") or {}).get("quantizer")
    if quantizers:
        names = [quantizers] if isinstance(quantizers, str) else quantizers
        return ", ".join(str(name).replace(":", " ") for name in names)
    if version := settings.get("autoround_version"):
        return f"auto-round {version}"
    if settings["quant_method"] == "compressed-tensors" and (version := settings.get("version")):
        return f"compressed-tensors {version}"
    return None


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
        return _layout_of_groups(settings)
    if method == "bitsandbytes":
        return "bnb-4bit" if settings.get("load_in_4bit") else "bnb-8bit"
    if method == "awq" and str(settings.get("version", "gemm")).lower() != "gemm":
        raise ValueError(f"awq of version {settings['version']}")
    if method not in PARTS:
        raise ValueError(f"quant_method {method}")
    return method


def _layout_of_groups(settings: Mapping[str, Any]) -> str:
    groups = list(dict(settings.get("config_groups") or {}).values())
    formats = {settings.get("format"), *(group.get("format") for group in groups)} - {None}
    names = {"pack-quantized": "compressed-tensors", "int-quantized": "int-quantized"}
    if len(formats) > 1 or not formats <= names.keys() | {"naive-quantized"}:
        raise ValueError(f"compressed-tensors of format {settings.get('format')}")
    if any(group.get("input_activations") for group in groups):
        raise ValueError("compressed-tensors with quantized activations")
    if settings.get("kv_cache_scheme") or settings.get("transform_config"):
        raise ValueError("compressed-tensors with a quantized cache or online transforms")
    return names.get(formats.pop() if formats else "pack-quantized", "int-quantized")


def lacking(layout: str, parts: Mapping[str, object]) -> list[str]:
    """Return the parts that a linear needs and does not have."""
    return [part for part in PARTS[layout] if part not in parts and part not in _OPTIONAL]


def decode(layout: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """Return the float32 weight [out_features, in_features] of one linear.

    Args:
        layout: a key of `PARTS`.
        parts: the linear's tensors, by the names there.
        settings: the checkpoint's `quantization_config`.

    Raises:
        ValueError: with the reason, for tensors that are not what the settings say.
    """
    match layout:
        case "compressed-tensors":
            return _decode_packed(parts, settings)
        case "int-quantized":
            zero = parts.get("weight_zero_point")
            scale = parts["weight_scale"].view(len(parts["weight"]), -1)
            zeros = 0 if zero is None else zero.view(*scale.shape, 1)
            return _dequantized(parts["weight"].to(torch.int32), zeros, scale)
        case "awq":
            return _decode_awq(parts)
        case "bnb-4bit":
            return _decode_nf4(parts)
        case "hqq":
            return _decode_hqq(parts)
        case "bnb-8bit":
            return parts["weight"].float() * (parts["SCB"].float() / 127).unsqueeze(-1)
        case _:
            return _decode_gptq(parts, settings)


def grid_of(layout: str, parts: Mapping[str, Tensor], shape: tuple[int, int]) -> tuple[int, int]:
    """Return the bits and the group size (-1: one group per row) of a linear of this shape."""
    if layout == "bnb-4bit":
        return 4, prod(shape) // parts["weight.absmax"].numel()
    if layout == "bnb-8bit":
        return 8, -1
    if layout == "hqq":
        group_size = prod(shape) // parts["scale"].numel()
        return int(parts["nbits"]), -1 if group_size == shape[1] else group_size
    if layout in ("gptq", "awq"):
        bits, n_groups = 32 * parts["qweight"].numel() // prod(shape), len(parts["scales"])
    else:
        n_groups = parts["weight_scale"].numel() // shape[0]
        bits = 8 if layout == "int-quantized" else 32 * parts["weight_packed"].shape[1] // shape[1]
    return bits, -1 if n_groups == 1 else shape[1] // n_groups


def unpack(words: Tensor, bits: int, n_codes: int) -> Tensor:
    """Return the codes of rows of int32 words [rows, n_words] as int32 [rows, n_codes], none negative."""
    lanes = torch.arange(n_codes, device=words.device) * bits
    word, shift = lanes // 32, lanes % 32
    unsigned = words.to(torch.int64) & 0xFFFFFFFF
    low = unsigned[:, word] >> shift
    high = unsigned[:, (word + 1).clamp(max=words.shape[1] - 1)] << (32 - shift)
    return ((low | high) & ((1 << bits) - 1)).to(torch.int32)


def _decode_packed(parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    out_features, in_features = parts["weight_shape"].tolist()
    packed, scale = parts["weight_packed"], parts["weight_scale"].view(out_features, -1)
    bits = packed.shape[1] * 32 // in_features
    groups = dict(settings.get("config_groups") or {}).values()
    if groups and bits not in (widths := {group["weights"]["num_bits"] for group in groups}):
        raise ValueError(f"weights of {bits} bits, where its config states {sorted(widths)}")
    codes = _unpack_either(packed, bits, in_features)
    zero: Tensor | int = 1 << (bits - 1)
    if (stored := parts.get("weight_zero_point")) is not None:
        zero = _unpack_either(stored.T.contiguous(), bits, out_features).T.unsqueeze(-1)
    if (group := parts.get("weight_g_idx")) is None or bool((group < 0).any()):
        return _dequantized(codes, zero, scale)
    group = group.long()
    zeros = zero if isinstance(zero, int) else zero.squeeze(-1)[:, group]
    return (codes - zeros).float() * scale[:, group].float()


def _unpack_either(words: Tensor, bits: int, n_codes: int) -> Tensor:
    """Return the codes of rows of words, of which those of an older writer hold whole codes alone."""
    per_word = 32 // bits
    if words.shape[1] == -(-n_codes * bits // 32) or words.shape[1] != -(-n_codes // per_word):
        return unpack(words, bits, n_codes)
    shifts = torch.arange(per_word, device=words.device) * bits
    codes = ((words.to(torch.int64) & 0xFFFFFFFF).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return codes.flatten(1)[:, :n_codes].to(torch.int32)


def _decode_nf4(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the weight of bitsandbytes' 4-bit tables, whose scales may be codes of another table."""
    name = next(n for n in parts if n.startswith("weight.quant_state."))
    state = json.loads(bytes(parts[name].tolist()))
    scale = parts["weight.absmax"]
    if "weight.nested_absmax" in parts:
        nested = parts["weight.nested_absmax"].float()
        values = parts["weight.nested_quant_map"].float()[scale.long()]
        width = int(state["nested_blocksize"])
        scale = values * nested.repeat_interleave(width)[: len(values)] + state["nested_offset"]
    codes = torch.stack([parts["weight"].flatten() >> 4, parts["weight"].flatten() & 15], dim=1)
    values = parts["weight.quant_map"].float()[codes.flatten().long()]
    scales = scale.float().repeat_interleave(int(state["blocksize"]))[: len(values)]
    weight: Tensor = (values * scales).view(state["shape"])
    return weight


def _decode_hqq(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the weight of HQQ's groups, whose words hold codes of rows far apart, the highest first."""
    packing, words = bytes(parts["packing"].tolist()).decode(), parts["W_q"]
    if words.is_floating_point() or packing not in ("8bit_u8", "4bit_u8", "3bit_32", "2bit_u8", "1bit_u8"):
        raise ValueError(f"codes packed as {packing} in {words.dtype}")
    bits, shape = int(packing[0]), tuple(parts["shape"].tolist())
    per_word = 10 if bits == 3 else 8 // bits
    shifts = [bits * (per_word - 1 - index) for index in range(per_word)]
    codes = torch.cat([(words >> shift) & ((1 << bits) - 1) for shift in shifts])
    codes = codes[: prod(shape) // words.shape[1]]
    weight = (codes.float() - parts["zero"].float()) * parts["scale"].float()
    return weight.view(shape)


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
