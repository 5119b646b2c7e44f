"""Phi-3's fused linears: a fused model quantizes as the same model with its linears apart."""

import pytest
import torch

from faqbench.models import Rows

PARTS = {
    "self_attn.q_proj": ("self_attn.qkv_proj", slice(0, 64)),
    "self_attn.k_proj": ("self_attn.qkv_proj", slice(64, 96)),
    "self_attn.v_proj": ("self_attn.qkv_proj", slice(96, 128)),
    "self_attn.o_proj": ("self_attn.o_proj", slice(0, 64)),
    "mlp.gate_proj": ("mlp.gate_up_proj", slice(0, 128)),
    "mlp.up_proj": ("mlp.gate_up_proj", slice(128, 256)),
    "mlp.down_proj": ("mlp.down_proj", slice(0, 64)),
}


@pytest.fixture
def pair(load):
    """A Llama and a Phi-3 of the same weights."""

    def make():
        apart, fused = load("llama"), load("phi3", rms_norm_eps=1e-6)
        for name, tensor in apart.model.state_dict().items():
            place, rows = next(
                ((name.replace(k, v), r) for k, (v, r) in PARTS.items() if k in name), (name, slice(None))
            )
            fused.model.state_dict()[place][rows] = tensor
        return apart, fused

    return make


@torch.inference_mode()
def test_the_pair_computes_the_same(pair, tokens):
    apart, fused = pair()
    torch.testing.assert_close(apart.model(tokens).logits, fused.model(tokens).logits)


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("rtn", []),
        ("awq", []),
        ("awq", ["quant.search.gqa_scale=repeat"]),
        ("faq", ["quant.preview.source=next_linear", "quant.preview.norm=mean", "gamma=0.2"]),
        ("gptq", []),
        ("qep-awq", []),
        ("loaq", []),
    ],
)
def test_a_fused_model_quantizes_as_the_one_with_its_linears_apart(pair, quantized, preset, overrides):
    models = pair()
    apart, fused = (quantized(preset, *overrides, loaded=m) for m in models)
    n_differing = n_values = 0
    for name, weight in apart.after.items():
        place, rows = next((name.replace(k, v), r) for k, (v, r) in PARTS.items() if k in name)
        n_differing += int(((fused.after[place][rows] - weight).abs() > 1e-5).sum())
        n_values += weight.numel()
    assert n_differing <= 0.005 * n_values


def test_the_rows_of_queries_and_keys_are_not_clipped_and_those_of_values_are(load, quantized):
    rtn = quantized("rtn", loaded=load("phi3"))
    clip = quantized("awq", "quant.scale=none", loaded=load("phi3"))
    name = "model.layers.0.self_attn.qkv_proj"
    assert torch.equal(rtn.after[name][:96], clip.after[name][:96])
    assert not torch.equal(rtn.after[name][96:], clip.after[name][96:])
    assert 0 < clip.report("self_attn.qkv_proj").clipped_frac < 1


def test_rows_of_a_fused_linear_are_counted_from_the_heads(load):
    architecture = load("phi3").architecture
    qkv, gate_up = architecture.role("qkv"), architecture.role("gate_up")
    name = "self_attn.qkv_proj"
    assert [rows.cut for rows in qkv.unclipped] == [slice(0, 64), slice(64, 96)]
    assert qkv.feeds == Rows(linear=name, start=96, stop=128)
    assert gate_up.feeds == Rows(linear="mlp.gate_up_proj", start=128, stop=256)
    assert architecture.role("down").feeds == Rows(linear="mlp.down_proj")


def test_a_grouped_query_phi3_skips_o_and_names_the_rows(load, quantized):
    outcome = quantized("awq", loaded=load("phi3"))
    (reason,) = outcome.result.skipped_scales
    assert "self_attn.qkv_proj.v -> self_attn.o_proj" in reason
    plain = quantized("awq", loaded=load("phi3", num_key_value_heads=4))
    assert plain.result.skipped_scales == ()
    assert plain.report("self_attn.o_proj").alpha is not None
