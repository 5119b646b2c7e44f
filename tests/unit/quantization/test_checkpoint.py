"""Quantized linears survive the disk bit for bit; where input scales go."""

import pytest
import torch
from toy_parts import LLAMA_SHAPE

from faqbench.config import UserError
from faqbench.models import architecture_of
from faqbench.models.tensors import Held
from faqbench.quantization import QuantizedLinear, quantize
from faqbench.quantization.checkpoint import (
    QuantizedTensors,
    StoredLinears,
    pack,
    read_linear,
    unpack,
    write_linear,
)
from faqbench.quantization.folding import row_scale
from faqbench.quantization.grid import Grid

CPU = torch.device("cpu")
NAME = "model.layers.0.self_attn.q_proj"
GRIDS = [
    Grid(bits=bits, group_size=group_size, symmetric=symmetric)
    for bits in range(2, 9)
    for group_size in (16, -1)
    for symmetric in (False, True)
]


def linear(grid, *, scaled=True):
    draw = torch.Generator().manual_seed(grid.bits)
    weight = torch.randn(24, 48, generator=draw)
    scale = torch.rand(48, generator=draw) + 0.5 if scaled else None
    return quantize(weight, grid, input_scale=scale)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_is_read_is_what_was_written(tmp_path, grid, scaled):
    original = linear(grid, scaled=scaled)
    write_linear(tmp_path, NAME, original)
    found = read_linear(tmp_path, NAME, CPU)
    assert found.grid == grid
    for field in ("qvalue", "scale", "zero_point", "input_scale"):
        one, other = getattr(original, field), getattr(found, field)
        assert (one is None) == (other is None), field
        assert one is None or (one.dtype == other.dtype and torch.equal(one, other)), field
    assert torch.equal(found.dequantize(), original.dequantize())


@pytest.mark.parametrize(("bits", "per_byte"), [(2, 4), (3, 2), (4, 2), (5, 1), (8, 1)])
def test_narrow_codes_share_bytes(bits, per_byte):
    grid = Grid(bits=bits, group_size=16, symmetric=False)
    assert len(pack(linear(grid).qvalue, grid)) == 24 * 48 // per_byte


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_code_of_every_width_survives_also_when_bytes_are_left_over(bits, symmetric):
    grid = Grid(bits=bits, group_size=-1, symmetric=symmetric)
    low, high = grid.code_range
    codes = torch.arange(low, high + 1, dtype=torch.int16)
    codes = torch.cat([codes, codes[:1]]).view(1, -1)  # an odd number
    codes = codes.to(torch.int8 if symmetric else torch.uint8)
    assert torch.equal(unpack(pack(codes, grid), grid, (1, codes.shape[1])), codes)


def test_the_weights_of_a_folder_take_their_place_among_a_models_tensors(tmp_path):
    grid = Grid(bits=3, group_size=16, symmetric=False)
    base = Held({"0.weight": torch.zeros(24, 48), "1.weight": torch.ones(4, 24)})
    write_linear(tmp_path, "0", linear(grid))
    stored = StoredLinears(tmp_path, CPU)
    assert list(stored) == ["0"]
    found = QuantizedTensors(base, stored)
    assert torch.equal(found.read("0.weight"), linear(grid).dequantize())
    assert torch.equal(found.read("1.weight"), torch.ones(4, 24))


def test_the_file_holds_tensors_alone(tmp_path):
    write_linear(tmp_path, NAME, linear(GRIDS[0]))
    (path,) = tmp_path.iterdir()
    assert path.name == f"{NAME}.safetensors"
    assert isinstance(read_linear(tmp_path, NAME, CPU), QuantizedLinear)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scales_are_numbers_of_the_dtype_that_they_are_stored_in(symmetric, dtype):
    grid = Grid(bits=4, group_size=16, symmetric=symmetric, scale_dtype=dtype)
    weight = torch.randn(8, 64) * torch.logspace(-6, 3, 8)[:, None]
    quantized = quantize(weight, grid)
    stored = quantized.scale.to(getattr(torch, dtype)).float()
    assert torch.equal(quantized.scale, stored) and (stored > 0).all()
    step = quantized.scale.repeat_interleave(16, dim=1)
    error = (quantized.dequantize() - weight).abs() / step
    assert error[3:].max() < 0.6  # codes are made with the rounded scale; only a clamp adds to a half


def test_scale_dtype_is_counted_in_bits_per_weight():
    weight = torch.randn(8, 64)
    bits = {
        dtype: quantize(
            weight, Grid(bits=4, group_size=16, symmetric=False, scale_dtype=dtype)
        ).storage_bits()
        for dtype in (None, "float16", "float32")
    }
    assert bits[None] == bits["float16"] == 8 * 64 * 4 + 8 * 4 * (16 + 4)
    assert bits["float32"] == bits["float16"] + 8 * 4 * 16


def test_scales_of_heads_that_share_a_value_head_must_be_equal():
    architecture = architecture_of(LLAMA_SHAPE)
    o, down = architecture.role("o"), architecture.role("down")
    shared = torch.arange(1.0, 33.0).view(2, 1, 16).expand(2, 2, 16).reshape(-1)
    assert torch.equal(row_scale(o, shared, 32, architecture), torch.arange(1.0, 33.0))
    assert torch.equal(row_scale(down, torch.arange(128.0), 128, architecture), torch.arange(128.0))
    with pytest.raises(UserError, match=r"self_attn\.o_proj differ .*gqa_scale=repeat"):
        row_scale(o, torch.arange(1.0, 65.0), 32, architecture)
