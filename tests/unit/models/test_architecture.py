"""Families as data, and the models that are refused."""

import pytest
from transformers import AutoConfig

from faqbench.config import UserError
from faqbench.models import architecture_of


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
        architecture_of(AutoConfig.for_model(model_type))


def test_an_unknown_family_is_refused_with_those_that_are_known():
    with pytest.raises(UserError, match=r"'gpt2' has no family .*known: .*llama.*qwen3"):
        architecture_of(AutoConfig.for_model("gpt2"))


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
