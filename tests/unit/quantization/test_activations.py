"""Statistics of a model's linears, against tokens captured by hooks; grids of quantized activations."""

import pytest
import torch

from faqbench.models import prepare, prepared_input
from faqbench.models.hadamard import draw_rotation
from faqbench.quantization.activation_grid import ActivationGrid, OperandGrid, input_range
from faqbench.quantization.activations import Accumulator, observe_means, read_means, select_tokens
from faqbench.quantization.grid import Grid, fake_quantize
from faqbench.quantization.scale import lae_scale, smoothquant_scale
from faqbench.stages import PlainProgress

ROLE_LINEARS = {
    "qkv": "self_attn.q_proj",
    "o": "self_attn.o_proj",
    "gate_up": "mlp.gate_proj",
    "down": "mlp.down_proj",
}


@pytest.fixture
def captured(tokens):
    """Run a model on the toy tokens and return the inputs of every role of every block."""

    def make(loaded):
        inputs, handles = {}, []
        for index, block in enumerate(loaded.architecture.block_modules(loaded.model)):
            for role, name in ROLE_LINEARS.items():

                def hook(_module, args, key=(index, role)):
                    inputs[key] = args[0].detach()

                handles.append(block.get_submodule(name).register_forward_pre_hook(hook))
        loaded.model(tokens, use_cache=False)
        for handle in handles:
            handle.remove()
        return inputs

    return make


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_statistics_are_the_means_over_the_tokens_that_each_linear_sees(load, observed, captured, family):
    loaded = load(family)
    store, inputs = observed(loaded), captured(loaded)
    for (block, role), x in inputs.items():
        x = x.flatten(0, 1).double()
        found = store.block(block)[role]
        torch.testing.assert_close(found.mean_abs.double(), x.abs().mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.gram.double(), x.T @ x / len(x), rtol=1e-3, atol=1e-5)


def test_the_batch_size_changes_nothing_but_rounding(load, observed):
    loaded = load()
    one, all_at_once = observed(loaded, batch_size=1), observed(loaded, batch_size=99)
    for block in range(4):
        for role, found in one.block(block).items():
            torch.testing.assert_close(found.gram, all_at_once.block(block)[role].gram)


def test_every_block_and_role_has_statistics_of_all_tokens(load, observed, tokens):
    store = observed(load())
    assert store.has_grams
    assert set(store.block(3)) == set(ROLE_LINEARS)
    assert {s.n_tokens for s in store.block(3).values()} == {tokens.numel()}


def test_statistics_of_a_half_precision_model_are_float32(load, observed):
    statistics = observed(load(dtype=torch.bfloat16)).block(0)["down"]
    assert (statistics.gram.dtype, statistics.mean_abs.dtype) == (torch.float32, torch.float32)


def test_observing_leaves_the_model_as_it_was(load, observed, tokens):
    loaded = load()
    before = loaded.model(tokens, use_cache=False).logits
    observed(loaded)
    assert torch.equal(loaded.model(tokens, use_cache=False).logits, before)
    assert not any(m._forward_pre_hooks for m in loaded.model.modules())


def test_all_keeps_every_token():
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(select_tokens(x, "all"), x.reshape(15, 4))


def test_drop_first_leaves_out_position_zero_of_each_window(load, observed, captured):
    loaded = load()
    x = captured(loaded)[(0, "qkv")][:, 1:].flatten(0, 1)
    found = observed(loaded, select="drop_first").block(0)["qkv"]
    assert found.n_tokens == len(x)
    torch.testing.assert_close(found.mean_abs, x.abs().mean(0))


def test_norm_cap_shortens_massive_tokens_and_no_others():
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    x[1, 0] *= 1000
    capped = select_tokens(x, "norm_cap").view_as(x)
    assert torch.equal(capped[0], x[0]) and torch.equal(capped[1, 1:], x[1, 1:])
    assert capped[1, 0].norm() == pytest.approx(10 * float(x[1].norm(dim=-1).median()), rel=1e-5)


def test_norm_cap_of_silent_tokens_is_finite():
    assert torch.equal(select_tokens(torch.zeros(1, 4, 3), "norm_cap"), torch.zeros(4, 3))


def test_an_accumulator_of_many_batches_is_one_of_all_tokens():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    parts, whole = Accumulator(6, x.device), Accumulator(6, x.device)
    for part in x.split(7):
        parts.add(part)
    whole.add(x)
    torch.testing.assert_close(parts.result().gram, whole.result().gram)
    assert parts.result().n_tokens == whole.result().n_tokens == 40


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


@pytest.mark.parametrize("select", ["all", "drop_first", "norm_cap"])
def test_the_means_are_those_of_the_full_statistics_to_the_bit(load, observed, tokens, tmp_path, select):
    loaded = load()
    store = observed(loaded, select=select)
    observe_means(loaded, tokens, batch_size=2, select=select, folder=tmp_path, progress=PlainProgress())
    means = read_means(tmp_path, 4)
    assert set(means) == {"qkv", "o", "gate_up", "down"}
    for role, blocks in means.items():
        for block, mean in enumerate(blocks):
            assert torch.equal(mean, store.mean_abs(block, role))
