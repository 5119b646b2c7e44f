"""Walking the blocks one by one gives the model's own hidden states."""

import pytest
import torch

from faqbench.cli.composing import conf_dir
from faqbench.models import open_stream

TINY = sorted(path.stem for path in conf_dir().glob("model/tiny-*.yaml"))


@pytest.fixture(scope="module")
def tokens():
    # 100 tokens: longer than the sliding window of 64 in tiny-gemma3.
    return torch.randint(0, 257, (3, 100), generator=torch.Generator().manual_seed(0))


def own_hidden_states(loaded, tokens, batch_size):
    """What enters each block and the final norm, in the model's own forward pass."""
    inputs = []

    def keep(_module, args, kwargs):
        inputs[-1].append((args[0] if args else kwargs["hidden_states"]).clone())

    final_norm = loaded.model.get_decoder().norm
    modules = [*loaded.architecture.block_modules(loaded.model), final_norm]
    handles = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in modules]
    with torch.inference_mode():
        for batch in tokens.split(batch_size):
            inputs.append([])
            loaded.model(batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in zip(*inputs, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", TINY)
def test_the_walk_gives_the_models_own_hidden_states(load, tokens, name, batch_size):
    loaded = load(name)
    expected = own_hidden_states(loaded, tokens, batch_size)
    stream = open_stream(loaded.view, tokens, batch_size)
    for index, block in enumerate(loaded.architecture.block_modules(loaded.model)):
        assert torch.equal(stream.hidden, expected[index])
        stream.advance(block)
    assert torch.equal(stream.hidden, expected[-1])


@pytest.mark.parametrize("name", TINY)
def test_a_batch_that_does_not_divide_the_windows_changes_nothing_but_rounding(load, tokens, name):
    loaded = load(name)
    stream = open_stream(loaded.view, tokens, batch_size=2)
    for block in loaded.architecture.block_modules(loaded.model):
        stream.advance(block)
    expected = own_hidden_states(loaded, tokens, batch_size=3)[-1]
    torch.testing.assert_close(stream.hidden, expected, rtol=1e-4, atol=1e-5)


def test_blocks_of_local_and_global_attention_are_each_called_with_their_own_arguments(load, tokens):
    loaded = load("tiny-gemma3", layer_types=["sliding_attention", "full_attention"] * 2)
    stream = open_stream(loaded.view, tokens, batch_size=1)
    local, whole = (kwargs["position_embeddings"][0] for kwargs in stream.kwargs[:2])
    assert not torch.equal(local, whole)
    for block in loaded.architecture.block_modules(loaded.model):
        stream.advance(block)
    assert torch.equal(stream.hidden, own_hidden_states(loaded, tokens, batch_size=1)[-1])


def test_a_sliding_window_that_is_shorter_than_the_text_matters(load, tokens):
    short = own_hidden_states(load("tiny-gemma3"), tokens, batch_size=3)[-1]
    wide = own_hidden_states(load("tiny-gemma3", sliding_window=256), tokens, batch_size=3)[-1]
    assert torch.equal(short[:, :64], wide[:, :64])
    assert not torch.allclose(short[:, 80:], wide[:, 80:])


@pytest.mark.parametrize("name", TINY)
def test_no_block_is_called_with_a_cache(load, tokens, name):
    loaded = load(name)
    stream = open_stream(loaded.view, tokens, batch_size=1)
    for kwargs in stream.kwargs:
        assert kwargs.get("past_key_values") is None
        assert not kwargs.get("use_cache")


def test_opening_a_stream_leaves_the_model_as_it_was(load, tokens):
    loaded = load()
    blocks = list(loaded.architecture.block_modules(loaded.model))
    before = loaded.model(tokens, use_cache=False).logits
    open_stream(loaded.view, tokens, batch_size=2)
    assert list(loaded.architecture.block_modules(loaded.model)) == blocks
    assert torch.equal(loaded.model(tokens, use_cache=False).logits, before)


def test_a_failing_forward_pass_puts_the_blocks_back(load, tokens):
    loaded = load()
    blocks = list(loaded.architecture.block_modules(loaded.model))
    with pytest.raises(IndexError):
        open_stream(loaded.view, tokens + 1000, batch_size=2)
    assert list(loaded.architecture.block_modules(loaded.model)) == blocks


def test_a_fork_moves_on_its_own(load, tokens):
    loaded = load()
    block = loaded.architecture.block_modules(loaded.model)[0]
    stream = open_stream(loaded.view, tokens, batch_size=2)
    before, fork = stream.hidden.clone(), stream.fork()
    fork.advance(block)
    assert torch.equal(stream.hidden, before)
    assert (stream.index, fork.index) == (0, 1)


def test_what_lies_on_the_way_to_a_module_is_seen_in_the_same_pass(load, tokens):
    loaded = load("tiny-llama")
    stream = open_stream(loaded.view, tokens, 2)
    block, passes = loaded.architecture.block_modules(loaded.model)[0], []
    alone = [x.clone() for _, x, _ in stream.inputs_of(block, "post_attention_layernorm")]
    block.self_attn.register_forward_pre_hook(lambda *_: passes.append(1))
    found = list(stream.inputs_of(block, "mlp.down_proj", "post_attention_layernorm"))
    assert len(passes) == len(alone) == 2
    assert all(torch.equal(seen, x) for (_, _, seen), x in zip(found, alone, strict=True))
    assert [x.shape[-1] for _, x, _ in found] == [block.mlp.down_proj.in_features] * 2
    assert not block.post_attention_layernorm._forward_pre_hooks
