"""The integer grid, against METHODS.md written out as a loop; linears on disk; where input scales go."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_parts import LLAMA_SHAPE

from faqbench.config import UserError
from faqbench.models import architecture_of
from faqbench.models.tensors import Held
from faqbench.quantization import Grid, QuantizedLinear, fake_quantize, quantize
from faqbench.quantization.checkpoint import (
    QuantizedTensors,
    StoredLinears,
    pack,
    read_linear,
    unpack,
    write_linear,
)
from faqbench.quantization.folding import row_scale

grids = st.builds(
    Grid,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([-1, 8, 16, 32]),
    symmetric=st.booleans(),
    symmetric_grid=st.sampled_from(["signed", "half_range", "full_range"]),
)
seeds = st.integers(0, 2**20)
few = settings(max_examples=40, deadline=None)


def random_weight(seed, rows=6, columns=32):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def naive(weight, bits, group_size, symmetric, symmetric_grid="signed"):
    """METHODS.md, "Grid", one group at a time in numpy."""
    weight = weight.astype(np.float64)
    codes, values = np.zeros_like(weight), np.zeros_like(weight)
    width = weight.shape[1] if group_size == -1 else group_size
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], width):
            cut = slice(start, start + width)
            w = weight[row, cut]
            if symmetric:
                low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
                steps = {"signed": high, "half_range": high + 0.5, "full_range": -low}
                scale, zero = max(abs(w).max(), 1e-5) / steps[symmetric_grid], 0
                if symmetric_grid == "full_range" and w.max() > -w.min():
                    scale = -scale
            else:
                scale = max(w.max() - w.min(), 1e-5) / (2**bits - 1)
                low, high = 0, 2**bits - 1
                zero = np.clip(-np.round(w.min() / scale), low, high)
            codes[row, cut] = np.clip(np.round(w / scale) + zero, low, high)
            values[row, cut] = (codes[row, cut] - zero) * scale
    return codes, values


@few
@given(seeds, grids)
def test_the_grid_is_the_one_of_the_methods_page(seed, grid):
    weight = random_weight(seed).double()
    _, values = naive(weight.numpy(), grid.bits, grid.group_size, grid.symmetric, grid.symmetric_grid)
    np.testing.assert_allclose(fake_quantize(weight, grid).numpy(), values, rtol=1e-12, atol=1e-15)


@few
@given(seeds, grids.filter(lambda g: not g.symmetric or g.symmetric_grid == "signed"))
def test_asymmetric_codes_and_signed_ones_do_not_know_of_other_symmetric_grids(seed, grid):
    plain = Grid(bits=grid.bits, group_size=grid.group_size, symmetric=grid.symmetric)
    weight = random_weight(seed)
    assert torch.equal(fake_quantize(weight, grid), fake_quantize(weight, plain))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_grids_differ_in_the_code_of_the_largest_weight(bits, sign):
    weight, n = sign * torch.tensor([[1.0, -0.3, 0.2, 0.1]]), 2 ** (bits - 1)

    def on(kind):
        grid = Grid(bits=bits, group_size=-1, symmetric=True, symmetric_grid=kind)
        q = quantize(weight, grid)
        return int(q.qvalue[0, 0]), float(q.dequantize()[0, 0])

    assert on("signed") == (sign * (n - 1), pytest.approx(sign))
    assert on("full_range") == (-n, pytest.approx(sign))
    code, value = on("half_range")
    assert code == n - 1 if sign > 0 else code in (-n, 1 - n)
    assert value == pytest.approx(code / (n - 0.5))


@few
@given(seeds, grids, st.sampled_from([-3.0, 0.0, 3.0]))
def test_groups_of_one_sign_follow_the_reference_too(seed, grid, shift):
    weight = random_weight(seed).double() + shift
    _, values = naive(weight.numpy(), grid.bits, grid.group_size, grid.symmetric, grid.symmetric_grid)
    np.testing.assert_allclose(fake_quantize(weight, grid).numpy(), values, rtol=1e-12, atol=1e-15)


def test_float32_and_float64_agree_on_codes_for_all_but_a_handful():
    n_differing = n_codes = 0
    for seed in range(10):
        for bits in (3, 4, 8):
            weight = random_weight(seed, 64, 128)
            codes, _ = naive(weight.numpy(), bits, 32, False)
            q = quantize(weight, Grid(bits=bits, group_size=32, symmetric=False))
            n_differing += int((q.qvalue.numpy() != codes).sum())
            n_codes += codes.size
    assert n_differing <= 5 < n_codes == 245_760


@few
@given(seeds, grids.filter(lambda g: not g.symmetric or g.symmetric_grid != "half_range"))
def test_quantizing_twice_is_quantizing_once_where_groups_have_both_signs(seed, grid):
    weight = random_weight(seed)
    weight[:, ::8], weight[:, 1::8] = weight[:, ::8].abs(), -weight[:, 1::8].abs()
    once = quantize(weight, grid)
    twice = quantize(once.dequantize(), grid)
    assert torch.equal(once.qvalue, twice.qvalue)
    torch.testing.assert_close(once.dequantize(), twice.dequantize(), rtol=1e-5, atol=0)


@few
@given(seeds, grids)
def test_permuting_output_rows_permutes_the_result(seed, grid):
    weight = random_weight(seed)
    order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed))
    straight, permuted = quantize(weight, grid), quantize(weight[order], grid)
    assert torch.equal(straight.qvalue[order], permuted.qvalue)
    assert torch.equal(straight.dequantize()[order], permuted.dequantize())


@few
@given(seeds, grids, st.integers(-6, 12))
def test_scaling_by_a_power_of_two_leaves_codes_unchanged(seed, grid, power):
    weight = random_weight(seed)
    plain, scaled = quantize(weight, grid), quantize(weight * 2.0**power, grid)
    assert torch.equal(plain.qvalue, scaled.qvalue)
    assert torch.equal(plain.dequantize() * 2.0**power, scaled.dequantize())


@few
@given(seeds, grids)
def test_an_input_scale_of_ones_changes_nothing(seed, grid):
    weight = random_weight(seed)
    scaled = quantize(weight, grid, input_scale=torch.ones(32))
    assert torch.equal(scaled.dequantize(), quantize(weight, grid).dequantize())


@few
@given(seeds, grids)
def test_an_input_scale_is_taken_out_again(seed, grid):
    weight = random_weight(seed)
    input_scale = random_weight(seed + 1, 1, 32)[0].exp()
    stand_in = quantize(weight, grid, input_scale=input_scale).dequantize()
    torch.testing.assert_close(
        stand_in * input_scale, fake_quantize(weight * input_scale, grid), rtol=1e-6, atol=1e-7
    )


@few
@given(seeds, grids)
def test_dequantized_codes_are_the_fake_quantized_weight(seed, grid):
    weight = random_weight(seed)
    torch.testing.assert_close(
        quantize(weight, grid).dequantize(), fake_quantize(weight, grid), rtol=0, atol=0
    )


@few
@given(seeds, st.integers(2, 8))
def test_a_weight_is_never_further_from_its_code_than_one_step(seed, bits):
    weight = random_weight(seed)
    groups = weight.view(6, 2, 16)
    # A group of one sign can lie beyond the codes: the grid always holds zero.
    groups[..., 0], groups[..., 1] = groups[..., 0].abs(), -groups[..., 1].abs()
    q = quantize(weight, Grid(bits=bits, group_size=16, symmetric=False))
    steps = q.scale.repeat_interleave(16, dim=1)
    assert ((q.dequantize() - weight).abs() <= steps * 1.0001).all()


def test_a_limit_at_the_largest_weight_clamps_nothing():
    weight, grid = random_weight(0), Grid(bits=3, group_size=16, symmetric=False)
    limit = weight.view(6, 2, 16).abs().amax(dim=-1)
    assert torch.equal(quantize(weight, grid, limit=limit).qvalue, quantize(weight, grid).qvalue)


@pytest.mark.parametrize(("symmetric", "dtype"), [(True, torch.int8), (False, torch.uint8)])
def test_codes_are_bytes_and_scales_are_floats(symmetric, dtype):
    q = quantize(random_weight(0), Grid(bits=4, group_size=-1, symmetric=symmetric))
    assert (q.qvalue.dtype, q.scale.dtype) == (dtype, torch.float32)
    assert (q.qvalue.shape, q.scale.shape) == ((6, 32), (6, 1))


def test_storage_bits_are_codes_plus_a_half_float_and_a_zero_point_per_group():
    weight = random_weight(0)
    asymmetric = quantize(weight, Grid(bits=3, group_size=16, symmetric=False))
    symmetric = quantize(weight, Grid(bits=3, group_size=-1, symmetric=True))
    assert asymmetric.storage_bits() == 6 * 32 * 3 + 6 * 2 * (16 + 3)
    assert symmetric.storage_bits() == 6 * 32 * 3 + 6 * 16


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
