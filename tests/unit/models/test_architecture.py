"""Families as data, the models that are refused, and the walk over the blocks one by one."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig

from faqbench.config import UserError
from faqbench.config.section import conf_dir
from faqbench.models import architecture_of, open_stream

EACH_FAMILY = ["tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3", "tiny-phi3"]


def test_every_linear_of_a_block_but_none_outside_is_listed(load):
    loaded = load()
    names = loaded.architecture.linear_names()
    assert len(names) == len(set(names)) == 4 * 7
    assert names[0] == "model.layers.0.self_attn.q_proj"
    assert names[-1] == "model.layers.3.mlp.down_proj"


def test_only_the_inputs_of_qkv_and_gate_up_are_in_the_residual_stream(load):
    roles = load().architecture.roles
    assert [r.name for r in roles] == ["qkv", "o", "gate_up", "down"]
    assert [r.residual for r in roles] == [True, False, True, False]


def test_downs_source_is_up_since_the_gate_is_not_linear(load):
    architecture = load().architecture
    assert architecture.role("down").source == "mlp.up_proj"
    assert architecture.role("o").source == "self_attn.v_proj"


def test_heads_tell_whether_queries_are_grouped(load):
    architecture = load().architecture
    shape = (architecture.n_heads, architecture.n_kv_heads, architecture.head_dim)
    assert shape == (4, 2, 16)
    assert architecture.is_grouped_query


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_a_mixture_of_experts_is_refused_with_the_reason(model_type):
    with pytest.raises(UserError, match=rf"'{model_type}' is a mixture of experts .*experts see"):
        architecture_of(AutoConfig.for_model(model_type).to_dict())


@pytest.mark.parametrize("model_type", ["gemma3", "llama4", "qwen2_vl"])
def test_a_model_of_more_than_text_is_refused_for_what_it_is(model_type):
    with pytest.raises(UserError, match=rf"'{model_type}' is a (multimodal model|mixture)"):
        architecture_of(AutoConfig.for_model(model_type).to_dict())


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_the_shapes_that_a_config_tells_are_those_of_the_model(load, name):
    loaded = load(name)
    told, state = loaded.architecture.weight_shapes(), loaded.model.state_dict()
    assert told == {key: tuple(state[key].shape) for key in told}
    matrices = {key for key, tensor in state.items() if tensor.dim() == 2}
    assert matrices - set(told) == ({"lm_head.weight"} if loaded.architecture.is_tied else set())


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3"])
def test_what_a_config_leaves_out_is_what_transformers_presumes(model_type):
    sizes = {"hidden_size": 384, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 7}  # fmt: skip
    told = architecture_of({"model_type": model_type, **sizes})
    completed = AutoConfig.for_model(model_type, pad_token_id=None, **sizes).to_dict()
    assert dataclasses.replace(told, context=None) == dataclasses.replace(
        architecture_of(completed), context=None
    )


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("hidden_size", 0, "hidden_size=0, which is not a positive whole number"),
        ("num_hidden_layers", "two", "num_hidden_layers=two, which is not a positive"),
        ("vocab_size", None, "lacks vocab_size"),
        ("num_key_value_heads", 3, "num_key_value_heads=3 does not divide"),
    ],
)
def test_sizes_that_make_no_model_are_refused_with_the_field(section, field, value, sentence):
    with pytest.raises(UserError, match=sentence):
        architecture_of({**section("tiny-llama").random, field: value})


def test_an_unknown_family_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match=r"'gpt2' has no family .*known: .*llama.*qwen3"):
        architecture_of(AutoConfig.for_model("gpt2").to_dict())


def test_a_model_that_lacks_its_familys_linears_is_refused_naming_one(section, load, monkeypatch):
    import torch
    from torch import nn

    from faqbench.models import load_model, loading
    from faqbench.stages import PlainProgress

    broken = load().model
    broken.model.layers[2].mlp.up_proj = nn.Identity()
    monkeypatch.setattr(loading, "random_model", lambda settings: broken)
    with pytest.raises(UserError, match=r"'llama': model\.layers\.2\.mlp\.up_proj is not a linear"):
        load_model(section("tiny-llama"), torch.float32, torch.device("cpu"), PlainProgress())


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
