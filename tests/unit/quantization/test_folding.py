"""Where input scales go, and scales in the dtype that they are stored in."""

import pytest
import torch
from toy_parts import LLAMA_SHAPE

from faqbench.config import UserError
from faqbench.models import architecture_of
from faqbench.quantization import Grid, quantize
from faqbench.quantization.folding import row_scale


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
