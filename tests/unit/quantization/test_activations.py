"""Statistics of a model's linears, against tokens captured by hooks."""

import pytest
import torch

from faqbench.quantization.activations import Accumulator, select_tokens

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
