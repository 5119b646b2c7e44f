"""Quantized linears survive the disk bit for bit."""

import pytest
import torch

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
