"""Families as data, and the models that are refused."""

import dataclasses

import pytest
from transformers import AutoConfig

from faqbench.config import UserError
from faqbench.models import architecture_of

TINY = ["tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3", "tiny-phi3"]


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


@pytest.mark.parametrize("name", TINY)
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
