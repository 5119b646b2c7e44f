"""Packed weights read back, against what wrote them."""

import dataclasses
import json

import pytest
import torch

from faqbench.config import UserError
from faqbench.export import compressed_tensors, gguf_file, words
from faqbench.export.fold import stored_weight
from faqbench.layouts import decode, grid_of, layout_of, stated, unpack
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
@pytest.mark.parametrize(("layout", "writer"), [("gptq", words.V2), ("awq", words.GEMM)])
def test_words_of_four_bits_are_read_as_they_were(layout, writer, symmetric):
    linear = quantized(4, symmetric)
    settings = {"bits": 4, "checkpoint_format": "gptq_v2"}
    assert torch.equal(decode(layout, writer.encode(linear), settings), stored_weight(linear))


def test_the_first_version_of_gptq_is_refused_where_a_zero_point_is_zero():
    linear = quantized(4, symmetric=False)
    settings = {"bits": 4, "checkpoint_format": "gptq"}
    assert torch.equal(decode("gptq", words.V1.encode(linear), settings), stored_weight(linear))
    linear.zero_point[3, 1] = 0
    with pytest.raises(UserError, match="use format=gptq_v2"):
        words.V1.encode(linear)


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
    assert hex(int(words.pack(words._interleaved(codes)))) == "0x75316420"


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
        {"quant_method": "exl2"},
        {"quant_method": "awq", "version": "gemv"},
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
    ],
)
def test_other_layouts_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=r"exl2|gemv|float-quantized"):
        layout_of(settings)


def test_codes_in_another_order_of_groups_are_read_by_their_index():
    linear = quantized(4, symmetric=False)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    parts = dict(compressed_tensors.encode(linear))
    groups = (torch.arange(96) // 32)[order]
    codes = linear.qvalue[:, order]
    moved = dataclasses.replace(linear, qvalue=codes)
    parts["weight_packed"] = compressed_tensors.encode(moved)["weight_packed"]
    parts["weight_g_idx"] = groups.to(torch.int32)
    assert torch.equal(decode("compressed-tensors", parts, {}), stored_weight(linear)[:, order])


def test_words_that_hold_whole_codes_alone_are_those_of_an_older_writer():
    linear = quantized(3, symmetric=True)
    codes = linear.qvalue.to(torch.int64) + 4
    padded = torch.nn.functional.pad(codes, (0, 4)).view(24, 10, 10)  # ten codes of 3 bits to a word
    words = (padded << (3 * torch.arange(10))).sum(-1).to(torch.int32)
    parts = dict(compressed_tensors.encode(linear)) | {"weight_packed": words}
    assert torch.equal(decode("compressed-tensors", parts, {}), stored_weight(linear))


def test_codes_of_eight_bits_are_read_unpacked():
    linear = quantized(8, symmetric=True)
    parts = {"weight": linear.qvalue, "weight_scale": linear.scale}
    assert torch.equal(decode("int-quantized", parts, {}), stored_weight(linear))
    assert grid_of("int-quantized", parts, (24, 96)) == (8, 32)


def test_tables_of_four_bits_are_read_with_scales_that_are_codes_themselves():
    """As bitsandbytes lays them out: the first of two codes in the upper half of a byte."""
    table = torch.linspace(-1, 1, 16)
    codes = torch.arange(128) % 16
    scales, nested = torch.tensor([0, 1], dtype=torch.uint8), torch.tensor([0.5, 2.0])
    state = {"blocksize": 64, "shape": [2, 64], "nested_blocksize": 256, "nested_offset": 1.0}
    parts = {
        "weight": (codes[::2] << 4 | codes[1::2]).to(torch.uint8).view(-1, 1),
        "weight.absmax": scales,
        "weight.quant_map": table,
        "weight.nested_absmax": torch.tensor([3.0]),
        "weight.nested_quant_map": nested,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode())),
    }
    expected = table[codes].view(2, 64) * torch.tensor([[2.5], [7.0]])
    assert torch.equal(decode("bnb-4bit", parts, {}), expected)
    assert grid_of("bnb-4bit", parts, (2, 64)) == (4, 64)


def test_hqqs_words_hold_rows_that_lie_far_apart():
    codes = torch.arange(16).view(4, 4) % 8  # four groups of four codes
    words = (codes[:2] << 4 | codes[2:]).to(torch.uint8)
    parts = {
        "W_q": words,
        "scale": torch.full((4, 1), 0.5),
        "zero": torch.arange(4.0).view(4, 1),
        "shape": torch.tensor([2, 8]),
        "packing": torch.tensor(list(b"4bit_u8")),
        "nbits": torch.tensor(4),
    }
    expected = ((codes - torch.arange(4).view(4, 1)) * 0.5).view(2, 8)
    assert torch.equal(decode("hqq", parts, {}), expected)
    assert grid_of("hqq", parts, (2, 8)) == (4, 4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "gptq", "bits": 3, "group_size": 128, "sym": True}, (3, 128, True, None)),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, (4, 64, False, None)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, (4, 64, True, None)),
        (
            {
                "quant_method": "hqq",
                "quant_config": {"weight_quant_params": {"nbits": 2, "group_size": 16}},
            },
            (2, 16, False, None),
        ),
        (
            {"quant_method": "gptq", "bits": 4, "meta": {"quantizer": ["gptqmodel:7.7.0"]}, "sym": False},
            (4, 128, False, "gptqmodel 7.7.0"),
        ),
    ],
)
def test_a_config_says_bits_groups_and_who_made_it(settings, said):
    found = stated(settings)
    assert (found.bits, found.group_size, found.symmetric, found.made_by) == said


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "float-quantized"},
        {"format": "pack-quantized", "config_groups": {"a": {"input_activations": {"num_bits": 8}}}},
        {"format": "pack-quantized", "kv_cache_scheme": {"num_bits": 8}},
    ],
)
def test_what_more_than_weights_is_quantized_is_refused(settings):
    with pytest.raises(ValueError, match="compressed-tensors"):
        layout_of({"quant_method": "compressed-tensors", **settings})
