"""GPTQ on every kind of grid: symmetric, clipped, per row, static groups."""

import pytest
import torch

from faqbench.quantization import Grid, quantize
from faqbench.quantization.gptq import gptq_round, inverse_factor

GRIDS = [
    Grid(bits=bits, group_size=group_size, symmetric=symmetric)
    for bits in (2, 3, 4)
    for group_size in (16, -1)
    for symmetric in (True, False)
]


@pytest.fixture
def settings(compose):
    section = compose("model=tiny-llama", "quant=gptq").quant.gptq
    return lambda **changes: section.model_copy(update=changes)


def correlated(seed, rows=24, columns=96, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=dtype)
    x = torch.randn(4 * columns, columns, generator=generator, dtype=dtype) @ mix
    return torch.randn(rows, columns, generator=generator, dtype=dtype), x.T @ x / len(x)


def limits(weight, grid):
    width = grid.group_width(weight.shape[1])
    return 0.7 * weight.view(len(weight), -1, width).abs().amax(dim=-1)


def stand_in(result):
    return (result.codes * result.parameters.scale.unsqueeze(-1)).flatten(1)


def output_error(weight, other, hessian):
    return float((((other - weight) @ hessian) * (other - weight)).sum())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("clips", [True, False])
def test_an_identity_hessian_makes_gptq_rtn_bit_for_bit_on_every_grid(settings, grid, clips):
    weight = correlated(0, dtype=torch.float32)[0]
    limit = limits(weight, grid) if clips else None
    result = gptq_round(weight, torch.eye(96), grid, settings(), limit)
    rtn = quantize(weight, grid, limit=limit)
    assert torch.equal(stand_in(result), rtn.dequantize())
    assert torch.equal(result.parameters.scale, rtn.scale)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_codes_and_scales_are_the_same_at_every_block_size(settings, grid, act_order):
    weight, hessian = correlated(1)
    limit = limits(weight, grid)

    def at(block_size):
        chosen = settings(block_size=block_size, act_order=act_order)
        return gptq_round(weight, hessian, grid, chosen, limit)

    whole = at(96)
    for block_size in (1, 7, 16, 33, 64, 1000):
        cut = at(block_size)
        assert torch.equal(cut.codes, whole.codes)
        torch.testing.assert_close(cut.parameters.scale, whole.parameters.scale)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_output_error_is_below_rtns_on_every_grid(settings, grid, act_order):
    for seed in range(3):
        weight, hessian = correlated(seed)
        result = gptq_round(weight, hessian, grid, settings(act_order=act_order))
        rtn = quantize(weight, grid).dequantize().double()
        mine = output_error(weight, stand_in(result), hessian)
        assert mine < output_error(weight, rtn, hessian)


def test_act_order_takes_scales_from_the_uncorrected_weights(settings):
    grid = Grid(bits=3, group_size=16, symmetric=False)
    weight, hessian = correlated(2, dtype=torch.float32)
    ordered = gptq_round(weight, hessian, grid, settings(act_order=True))
    straight = gptq_round(weight, hessian, grid, settings())
    rtn = quantize(weight, grid)
    assert torch.equal(ordered.parameters.scale, rtn.scale)
    assert torch.equal(straight.parameters.scale[:, 0], rtn.scale[:, 0])
    assert not torch.equal(straight.parameters.scale[:, 1:], rtn.scale[:, 1:])


def test_act_order_of_a_falling_diagonal_changes_nothing_but_the_groups(settings):
    grid = Grid(bits=3, group_size=-1, symmetric=False)
    weight, hessian = correlated(3)
    order = hessian.diagonal().argsort(descending=True)
    weight, hessian = weight[:, order], hessian[order][:, order]
    ordered = gptq_round(weight, hessian, grid, settings(act_order=True))
    assert torch.equal(ordered.codes, gptq_round(weight, hessian, grid, settings()).codes)


def test_the_factor_is_the_upper_cholesky_factor_of_the_damped_inverse():
    hessian = correlated(4)[1]
    upper, damping, condition = inverse_factor(hessian, 0.05)
    damped = hessian / hessian.diagonal().mean() + 0.05 * torch.eye(96, dtype=torch.float64)
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(damped))
    assert torch.equal(upper, upper.triu()) and (upper.diagonal() > 0).all()
    assert damping == 0.05
    assert 1 < condition <= torch.linalg.cond(damped) * 1.001


def test_several_dead_columns_leave_the_others_as_if_they_were_not_there(settings):
    grid = Grid(bits=3, group_size=-1, symmetric=True)
    weight, hessian = correlated(5)
    dead = torch.zeros(96, dtype=torch.bool)
    dead[[0, 17, 95]] = True
    hessian[dead], hessian[:, dead] = 0, 0
    weight[:, dead] = 100.0
    result = gptq_round(weight, hessian, grid, settings(damping=1e-9))
    alive = gptq_round(weight[:, ~dead], hessian[~dead][:, ~dead], grid, settings(damping=1e-9))
    assert torch.equal(result.codes.flatten(1)[:, ~dead], alive.codes.flatten(1))
    assert not result.codes.flatten(1)[:, dead].any()
