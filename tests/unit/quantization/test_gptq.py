"""GPTQ against RTN and against a plain loop, on every kind of grid and on Hessians without a factor."""

import pytest
import torch

from faqbench.quantization import Grid, quantize
from faqbench.quantization.gptq import gptq_round, inverse_factor

GRID = Grid(bits=3, group_size=16, symmetric=False)


@pytest.fixture
def settings(compose):
    section = compose("model=tiny-llama", "quant=gptq").quant.gptq
    return lambda **changes: section.model_copy(update=changes)


def problem(seed, rows=12, columns=64):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    x = torch.randn(300, columns, generator=generator) @ mix
    return torch.randn(rows, columns, generator=generator), x.T @ x / len(x)


def stand_in(result):
    return (result.codes * result.parameters.scale.unsqueeze(-1)).flatten(1)


def loss(weight, other, hessian):
    error = (other - weight).double()
    return float(((error @ hessian.double()) * error).sum())


def naive(weight, hessian, damping, width, bits):
    """Algorithm 1 of the paper without lazy blocks, a group's scale taken when it is reached."""
    w, h = weight.double().clone(), hessian.double().clone()
    h += damping * h.diagonal().mean() * torch.eye(len(h))
    upper = torch.linalg.cholesky(torch.linalg.inv(h)).T
    result = torch.zeros_like(w)
    for c in range(w.shape[1]):
        if c % width == 0:
            group = w[:, c : c + width]
            step = (group.amax(1) - group.amin(1)).clamp(min=1e-5) / (2**bits - 1)
            zero = (-(group.amin(1) / step).round()).clamp(0, 2**bits - 1)
        codes = ((w[:, c] / step).round() + zero).clamp(0, 2**bits - 1)
        result[:, c] = (codes - zero) * step
        error = (w[:, c] - result[:, c]) / upper[c, c]
        w[:, c:] -= error.unsqueeze(1) * upper[c, c:]
    return result


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("group_size", [16, -1])
def test_gptq_with_identity_hessian_is_rtn(settings, act_order, group_size):
    grid = Grid(bits=3, group_size=group_size, symmetric=False)
    weight, _ = problem(0)
    result = gptq_round(weight, torch.eye(64), grid, settings(act_order=act_order))
    assert torch.equal(stand_in(result), quantize(weight, grid).dequantize())


@pytest.mark.parametrize("group_size", [16, 64, -1])
def test_gptq_codes_do_not_depend_on_the_column_block_size(settings, group_size):
    weight, hessian = problem(1)
    grid = Grid(bits=3, group_size=group_size, symmetric=False)
    whole = gptq_round(weight, hessian, grid, settings(block_size=64))
    for block_size in (1, 16, 24, 128):
        cut = gptq_round(weight, hessian, grid, settings(block_size=block_size))
        assert torch.equal(cut.codes, whole.codes)


@pytest.mark.parametrize("seed", range(3))
def test_gptq_is_algorithm_one_of_the_paper(settings, seed):
    weight, hessian = problem(seed)
    result = stand_in(gptq_round(weight, hessian, GRID, settings()))
    expected = naive(weight, hessian, settings().damping, 16, 3)
    differing = (result - expected).abs() > 1e-4
    assert differing.float().mean() < 0.02


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_gptq_has_a_smaller_output_error_than_rtn(settings, seed, act_order):
    weight, hessian = problem(seed)
    result = stand_in(gptq_round(weight, hessian, GRID, settings(act_order=act_order)))
    rtn = quantize(weight, GRID).dequantize()
    assert loss(weight, result, hessian) < loss(weight, rtn, hessian)


def test_permuting_output_rows_permutes_gptqs_codes(settings):
    weight, hessian = problem(2)
    straight = gptq_round(weight, hessian, GRID, settings())
    assert torch.equal(gptq_round(weight.flip(0), hessian, GRID, settings()).codes, straight.codes.flip(0))


def test_gptq_leaves_its_arguments_alone(settings):
    weight, hessian = problem(3)
    before = weight.clone(), hessian.clone()
    gptq_round(weight, hessian, GRID, settings())
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])


def test_dead_columns_are_rounded_to_zero(settings):
    weight, hessian = problem(4)
    hessian[5], hessian[:, 5] = 0, 0
    result = gptq_round(weight, hessian, GRID, settings())
    assert stand_in(result).isfinite().all()
    assert not stand_in(result)[:, 5].any()


def test_a_singular_hessian_gets_more_damping_and_says_so(settings):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    x[:, ::2] *= 1e4
    result = gptq_round(problem(5)[0], x.T @ x, GRID, settings(damping=1e-9))
    assert result.damping > 1e-9
    assert stand_in(result).isfinite().all()


def test_a_well_conditioned_hessian_keeps_its_damping(settings):
    _, damping, condition = inverse_factor(torch.eye(8), 0.01)
    assert damping == 0.01
    assert condition == pytest.approx(1.0)


def test_a_hessian_of_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        inverse_factor(torch.full((4, 4), torch.nan), 0.01)


GRIDS = [
    Grid(bits=bits, group_size=group_size, symmetric=symmetric)
    for bits in (2, 3, 4)
    for group_size in (16, -1)
    for symmetric in (True, False)
]


def correlated(seed, rows=24, columns=96, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=dtype)
    x = torch.randn(4 * columns, columns, generator=generator, dtype=dtype) @ mix
    return torch.randn(rows, columns, generator=generator, dtype=dtype), x.T @ x / len(x)


def limits(weight, grid):
    width = grid.group_width(weight.shape[1])
    return 0.7 * weight.view(len(weight), -1, width).abs().amax(dim=-1)


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
