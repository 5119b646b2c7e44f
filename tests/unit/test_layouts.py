"""Packed weights read back, against what wrote them."""

import dataclasses

import pytest
import torch

from faqbench.config import UserError
from faqbench.export import awq, compressed_tensors, gguf_file, gptq
from faqbench.export.fold import stored_weight
from faqbench.layouts import decode, layout_of, unpack
from faqbench.quantization import Grid, quantize


def quantized(bits, symmetric, group_size=32):
    grid = Grid(bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype="float16")
    drawn = torch.Generator().manual_seed(bits)
    return quantize(torch.randn(24, 96, generator=drawn), grid)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_width_of_compressed_tensors_is_read_as_it_was(bits, symmetric):
    linear = quantized(bits, symmetric, group_size=-1 if bits == 3 else 32)
    weight = decode("compressed-tensors", compressed_tensors.encode(linear), {})
    assert torch.equal(weight, stored_weight(linear))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("layout", "writer"), [("gptq", gptq.V2), ("awq", awq)])
def test_words_of_four_bits_are_read_as_they_were(layout, writer, symmetric):
    linear = quantized(4, symmetric)
    settings = {"bits": 4, "checkpoint_format": "gptq_v2"}
    assert torch.equal(decode(layout, writer.encode(linear), settings), stored_weight(linear))


def test_the_first_version_of_gptq_is_refused_where_a_zero_point_is_zero():
    linear = quantized(4, symmetric=False)
    settings = {"bits": 4, "checkpoint_format": "gptq"}
    assert torch.equal(decode("gptq", gptq.V1.encode(linear), settings), stored_weight(linear))
    linear.zero_point[3, 1] = 0
    with pytest.raises(UserError, match="use format=gptq_v2"):
        gptq.V1.encode(linear)


@pytest.mark.parametrize(("bits", "symmetric"), [(4, True), (8, True), (4, False)])
def test_blocks_of_gguf_are_read_by_its_package_as_they_were(bits, symmetric):
    import gguf

    linear = quantized(bits, symmetric)
    if not symmetric:  # so that float16 holds scale times zero point
        coarse = (linear.scale * 2**7).round() / 2**7
        linear = dataclasses.replace(linear, scale=coarse)
    kind = gguf.GGMLQuantizationType[{4: "Q4_0" if symmetric else "Q4_1", 8: "Q8_0"}[bits]]
    weight = torch.from_numpy(gguf.dequantize(gguf_file.encode(linear), kind))
    assert torch.equal(weight, stored_weight(linear))


def test_words_of_awq_are_those_of_its_kernels():
    """From AutoAWQ's packing: the first word of a row of codes 0 to 7 is 0x75316420."""
    codes = torch.arange(8).repeat(1, 1)
    assert hex(int(gptq.pack(awq._interleaved(codes)))) == "0x75316420"


def test_a_negative_word_is_a_row_of_bits():
    assert unpack(torch.tensor([[-1, 7]], dtype=torch.int32), 3, 12).tolist() == [[7] * 11 + [3]]


@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "awq", "version": "gemm"}, "awq"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}, "gptq"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
    ],
)
def test_layouts_are_known_by_their_settings(settings, layout):
    assert layout_of(settings) == layout


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes"},
        {"quant_method": "awq", "version": "gemv"},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
    ],
)
def test_other_layouts_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=r"bitsandbytes|gemv|float-quantized"):
        layout_of(settings)
