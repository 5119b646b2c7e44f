"""Quantized activations: the grid of a linear's input, and the linear that rounds to it."""

import pytest
import torch

from faqbench.models import prepare, prepared_input
from faqbench.models.hadamard import draw_rotation
from faqbench.quantization.activation_grid import ActivationGrid, OperandGrid, input_range
from faqbench.quantization.grid import Grid, fake_quantize
from faqbench.quantization.smoothing import lae_scale, smoothquant_scale


@pytest.fixture
def settings(compose):
    return lambda *overrides: compose("model=tiny-llama", "quant=w4a4", *overrides).quant.activations


def tokens(n=6, width=48):
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(3))
    x[:, 5] *= 20
    return x


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_token_is_rounded_as_a_row_of_a_weight_is(settings, symmetric):
    grid = ActivationGrid(settings(f"quant.activations.symmetric={symmetric}"), None, None)
    x = tokens()
    expected = fake_quantize(x, Grid(bits=4, group_size=-1, symmetric=symmetric))
    assert torch.equal(grid(x), expected)


def test_symmetric_codes_of_a_known_token(settings):
    grid = ActivationGrid(settings(), None, None)
    x = torch.tensor([[7.0, -3.4, 0.6, -7.0]])
    assert grid(x).tolist() == [[7.0, -3.0, 1.0, -7.0]]


def test_an_asymmetric_range_holds_zero(settings):
    grid = ActivationGrid(settings("quant.activations.symmetric=false"), None, None)
    x = torch.tensor([[30.0, 15.2, 29.2, 16.0]])
    assert grid(x).tolist() == [[30.0, 16.0, 30.0, 16.0]]  # steps of 2 from 0


def test_a_token_is_rounded_alike_whatever_lies_beside_it(settings):
    grid, x = ActivationGrid(settings(), None, None), tokens(n=9000)
    together = grid(x.view(3, 3000, -1)).view_as(x)
    for row in (0, 4321, 8999):
        assert torch.equal(grid(x[row : row + 1])[0], together[row])


def test_a_static_range_is_one_for_all_tokens_and_clips_what_lies_outside(settings):
    section = settings("quant.activations.granularity=tensor", "quant.activations.dynamic=false")
    seen = torch.tensor([[-7.0, 1.0], [2.0, 3.0]])
    span = input_range(seen.amin(dim=0), seen.amax(dim=0), None)
    assert span.tolist() == [-7.0, 3.0]
    grid = ActivationGrid(section, None, span)
    assert grid(torch.tensor([[100.0, 0.4], [2.6, -100.0]])).tolist() == [[7.0, 0.0], [3.0, -8.0]]


def test_a_clip_ratio_shrinks_the_range(settings):
    grid = ActivationGrid(settings("quant.activations.clip_ratio=0.5"), None, None)
    assert grid(torch.tensor([[14.0, 1.2, -14.0]])).tolist() == [[7.0, 1.0, -8.0]]


def test_the_input_is_divided_by_the_scale_of_the_weights_and_given_back(settings):
    x, scale = tokens(), torch.rand(48, generator=torch.Generator().manual_seed(4)) + 0.5
    plain = ActivationGrid(settings(), None, None)
    assert torch.equal(ActivationGrid(settings(), scale, None)(x), plain(x / scale) * scale)


def test_a_prepared_linear_keeps_its_parameters(settings):
    model = torch.nn.Sequential(torch.nn.Linear(48, 8))
    names, linear, x = dict(model.named_parameters()), model[0], tokens()
    grid = ActivationGrid(settings(), None, None)
    prepare(model, "0", grid)
    assert dict(model.named_parameters()) == names
    assert torch.equal(model(x), linear(grid(x)))
    assert torch.equal(prepared_input(model[0], x), grid(x))
    assert torch.equal(prepared_input(linear, x), x)


def test_keys_and_values_have_a_range_per_token_and_head_and_queries_are_left_alone(settings):
    section = settings("quant.activations.kv_bits=4")
    q, k, v = torch.randn(3, 2, 5, 7, 16, generator=torch.Generator().manual_seed(0))
    query, key, value = OperandGrid(section, None)(q, k, v)
    grid = Grid(bits=4, group_size=-1, symmetric=True)
    assert torch.equal(query, q)
    assert torch.equal(key, fake_quantize(k.reshape(-1, 16), grid).view_as(k))
    assert torch.equal(value, fake_quantize(v.reshape(-1, 16), grid).view_as(v))


def test_r3_rotates_queries_and_keys_alike_so_that_their_products_stay(settings):
    section = settings("quant.activations.kv_bits=8")
    q, k, v = torch.randn(3, 1, 2, 9, 16, generator=torch.Generator().manual_seed(0))
    k[..., 3] *= 30  # a channel that stands out, as keys have them
    rotation = draw_rotation("hadamard", 16, seed=0, place="R3")

    def error(change):
        query, key, value = change(q, k, v)
        return (query @ key.mT - q @ k.mT).norm(), (value - v).norm()

    plain, rotated = error(OperandGrid(section, None)), error(OperandGrid(section, rotation))
    assert rotated[0] < plain[0]
    assert torch.equal(rotated[1], plain[1])


def test_the_logarithmic_equivalent_of_two_is_one_and_a_dead_channel_is_no_zero(compose):
    quant = compose("model=tiny-llama", "quant=w4a4-lae").quant
    scale = lae_scale(torch.tensor([2.0, 6.0, 14.0, 0.0]), [], quant)
    assert torch.allclose(scale, torch.tensor([1.0, 2.0, 3.5, 0.01]))


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [0.5, 0.25]), (0.5, [2.0, 1.0]), (1.0, [8.0, 4.0])])
def test_smoothquant_weighs_activations_against_all_weights_that_share_them(compose, alpha, expected):
    quant = compose("model=tiny-llama", "quant=smoothquant", f"quant.smoothing.alpha={alpha}").quant
    weights = [torch.tensor([[1.0, -4.0]]), torch.tensor([[-2.0, 3.0], [0.5, 0.5]])]
    scale = smoothquant_scale(torch.tensor([8.0, 4.0]), weights, quant)
    assert torch.allclose(scale, torch.tensor(expected))


def test_smoothing_evens_out_what_quantized_activations_lose(settings):
    x, weight = tokens(n=400), torch.randn(32, 48, generator=torch.Generator().manual_seed(5))
    grid = Grid(bits=4, group_size=-1, symmetric=True)

    def error(scale):
        rounded = ActivationGrid(settings(), scale, None)(x) @ fake_quantize(weight, grid, scale).T
        return (rounded - x @ weight.T).square().mean()

    largest = x.abs().amax(dim=0)
    smooth = (largest / weight.abs().amax(dim=0)).sqrt()
    assert error(smooth) < error(torch.ones(48)) / 2
    assert error(lae_scale(largest, [], None)) < error(torch.ones(48)) / 2
