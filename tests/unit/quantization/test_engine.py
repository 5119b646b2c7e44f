"""The walk over a tiny model: which methods coincide, which linears are touched; fused linears."""

import weakref

import pytest
import torch

from faqbench.config import UserError
from faqbench.models import Rows
from faqbench.quantization import assign_grids, walk


@pytest.mark.parametrize("override", ["gamma=1", "window=0"])
def test_faq_without_a_preview_is_awq_bit_for_bit(quantized, override):
    assert quantized("faq", override).same_as(quantized("awq"))


def test_only_the_last_block_of_faq_is_awq(quantized):
    faq, awq = quantized("faq", "gamma=0.3"), quantized("awq")
    assert faq.same_as(awq, "layers.3.")
    assert not any(faq.same_as(awq, f"layers.{block}.") for block in range(3))


def test_awq_with_an_empty_grid_is_rtn(quantized):
    assert quantized("awq", "quant.search.n_grid=0", "quant.clip=none").same_as(quantized("rtn"))


def test_awq_with_a_grid_of_one_exponent_is_rtn(quantized):
    assert quantized("awq", "quant.search.n_grid=1", "quant.clip=none").same_as(quantized("rtn"))


def test_awq_is_not_rtn(quantized):
    assert not quantized("awq", "quant.clip=none").same_as(quantized("rtn"), "q_proj")


def test_a_preview_of_residual_roles_leaves_o_and_down_to_awq(quantized):
    faq = quantized("faq", "gamma=0.3", "quant.preview.roles=residual")
    awq = quantized("awq")
    assert faq.same_as(awq, "down_proj") and faq.same_as(awq, "o_proj")
    assert not faq.same_as(awq, "q_proj")


def test_a_fixed_alpha_is_used_everywhere(quantized):
    outcome = quantized("faq", "quant.preview.alpha=0.5")
    alphas = {r.alpha for r in outcome.result.linears if r.role != "o"}
    assert alphas == {0.5}


def test_a_window_longer_than_the_model_is_cut_and_says_so(quantized):
    faq = quantized("faq", "window=99")
    assert faq.same_as(quantized("faq", "window=3"))
    assert faq.result.n_window_cuts == 4


def test_the_search_never_does_worse_than_plain_rounding_on_its_own_statistics(quantized):
    outcome = quantized("awq", "quant.clip=none")
    down = [r for r in outcome.result.linears if r.role == "down"]
    assert all(r.relative_error <= r.nearest_error * 1.005 for r in down)
    assert any(r.relative_error < r.nearest_error for r in down)


def test_query_and_key_projections_are_not_clipped(quantized):
    outcome = quantized("awq", "quant.scale=none")
    unclipped = [r for r in outcome.result.linears if r.linear.endswith(("q_proj", "k_proj"))]
    assert all(r.clipped_frac == 0 for r in unclipped)
    assert outcome.report("self_attn.v_proj").clipped_frac > 0
    assert outcome.same_as(quantized("rtn"), "q_proj")


def test_storage_counts_codes_scales_and_zero_points(quantized):
    asymmetric = quantized("rtn", "bits=3", "group_size=32").result
    symmetric = quantized("rtn", "bits=4", "group_size=16", "symmetric=true").result
    assert asymmetric.bits_per_weight == pytest.approx(3 + (16 + 3) / 32)
    assert symmetric.bits_per_weight == pytest.approx(4 + 16 / 16)


def test_embeddings_stay_in_full_precision_and_tied(load, quantized):
    loaded = load()
    embedding = loaded.model.get_input_embeddings().weight.clone()
    quantized("awq", loaded=loaded)
    head = loaded.model.get_output_embeddings().weight
    assert torch.equal(loaded.model.get_input_embeddings().weight, embedding)
    assert head.data_ptr() == loaded.model.get_input_embeddings().weight.data_ptr()


def test_a_grouped_query_model_skips_o_and_says_so(quantized):
    outcome = quantized("awq")
    (reason,) = outcome.result.skipped_scales
    assert "o_proj" in reason and "4 query heads share 2 value heads" in reason
    assert outcome.report("self_attn.o_proj").alpha is None
    assert outcome.report("self_attn.o_proj").scale_range == 1


def test_repeat_scales_o_and_skips_nothing(quantized):
    outcome = quantized("awq", "quant.search.gqa_scale=repeat")
    assert outcome.result.skipped_scales == ()
    assert outcome.report("self_attn.o_proj").alpha is not None


def test_a_model_with_a_value_head_per_query_head_scales_o(load, quantized):
    outcome = quantized("awq", loaded=load(num_key_value_heads=4))
    assert outcome.result.skipped_scales == ()
    assert outcome.report("self_attn.o_proj").alpha is not None


def test_skipped_linears_keep_their_weights_and_all_others_change(quantized):
    outcome = quantized("awq", 'quant.skip=["*.down_proj","*.layers.1.*"]')
    kept = [n for n in outcome.before if torch.equal(outcome.before[n], outcome.after[n])]
    assert kept == [n for n in outcome.before if n.endswith("down_proj") or ".layers.1." in n]
    assert len(outcome.result.linears) == len(outcome.before) - len(kept)


def test_an_override_changes_the_grid_of_the_linears_it_names_and_no_other(quantized):
    override = 'quant.overrides=[{pattern: "*.v_proj", bits: 8, group_size: -1}]'
    mixed, plain = quantized("rtn", override), quantized("rtn")
    report = mixed.report("self_attn.v_proj")
    assert (report.bits, report.group_size) == (8, -1)
    assert mixed.same_as(plain, "q_proj") and not mixed.same_as(plain, "v_proj")


def test_an_override_of_bits_alone_keeps_the_group_size(quantized):
    override = 'quant.overrides=[{pattern: "*.v_proj", bits: 8, group_size: null}]'
    report = quantized("rtn", override).report("self_attn.v_proj")
    assert (report.bits, report.group_size) == (8, 32)


def refusal(compose, load, *overrides):
    loaded = load()
    with pytest.raises(UserError) as caught:
        assign_grids(loaded.architecture, compose("model=tiny-llama", *overrides).quant)
    return str(caught.value)


def test_a_group_size_that_does_not_divide_names_the_linear_and_the_sizes_that_do(compose, load):
    text = refusal(compose, load, "group_size=48")
    assert "group_size=48" in text and "in_features=64" in text
    assert "model.layers.0.self_attn.q_proj" in text
    assert "16, 32, 64, or -1" in text


def test_a_group_size_that_divides_only_some_linears_names_the_one_it_does_not(compose, load):
    assert "in_features=64 of model.layers.0" in refusal(compose, load, "group_size=128")


@pytest.mark.parametrize(
    "override", ["quant.skip=[lm_head]", 'quant.overrides=[{pattern: "*.w1", bits: 4, group_size: null}]']
)
def test_a_pattern_that_matches_no_linear_is_refused(compose, load, override):
    text = refusal(compose, load, override)
    assert "matches no linear" in text and "model.layers.0.self_attn.q_proj" in text


def test_two_overrides_of_one_linear_are_refused_with_both_patterns(compose, load):
    first = '{pattern: "*.v_proj", bits: 4, group_size: null}'
    second = '{pattern: "*.layers.2.*", bits: 8, group_size: null}'
    text = refusal(compose, load, f"quant.overrides=[{first},{second}]")
    assert "'*.v_proj'" in text and "'*.layers.2.*'" in text
    assert "model.layers.2.self_attn.v_proj" in text


def test_the_baseline_has_no_grids(compose, load):
    loaded = load()
    quant = compose("model=tiny-llama", "quant=fp").quant
    assert assign_grids(loaded.architecture, quant) == {}


def test_quantizing_is_deterministic(quantized):
    assert quantized("faq").same_as(quantized("faq"))


@pytest.mark.parametrize(
    ("preset", "override", "plain"),
    [
        ("qep", "quant.correction.strength=0", "rtn"),
        ("qep-awq", "quant.correction.strength=0", "awq"),
        ("qep-faq", "quant.correction.strength=0", "faq"),
        ("qep-gptq", "quant.correction.strength=0", "gptq"),
        ("loaq", "quant.correction={strength: 0, residual_strength: 0}", "rtn"),
        ("loaq-gptq", "quant.correction={strength: 0, residual_strength: 0}", "gptq"),
    ],
)
def test_a_correction_of_strength_zero_is_the_uncorrected_method(quantized, preset, override, plain):
    assert quantized(preset, override).same_as(quantized(plain))


@pytest.mark.parametrize("override", ["gptq.act_order=false", "gptq.act_order=true"])
def test_gptaq_at_zero_is_gptq_on_statistics_taken_role_by_role(quantized, override):
    by_role = quantized("qep-gptq", "quant.correction.roles=[]", f"quant.{override}")
    gptaq = quantized("gptaq", "quant.gptaq.alpha=0", f"quant.{override}")
    # The first role's statistics are the same either way.
    assert gptaq.same_as(by_role, "layers.0.self_attn.q_proj")
    assert not gptaq.same_as(by_role)


def test_what_a_correction_has_made_up_for_is_not_made_up_for_again(quantized):
    but_down = "quant.correction={strength: 1.0, roles: [qkv, o, gate_up]}"  # with down, too, it is refused
    gptaq, gptq = quantized("qep-gptq", but_down, "quant.round=gptaq"), quantized("qep-gptq", but_down)
    corrected = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj")
    assert all(gptaq.same_as(gptq, f"layers.0.{name}") for name in corrected)
    assert not gptaq.same_as(gptq, "layers.0.mlp.down_proj")
    half = "quant.correction={strength: 0.5, roles: [qkv, o, gate_up, down]}"
    assert not quantized("qep-gptq", half, "quant.round=gptaq").same_as(quantized("qep-gptq", half))


@pytest.mark.parametrize("preset", ["gptaq", "rescomp", "qronos"])
def test_output_aligned_rounding_knows_of_the_error_upstream(quantized, preset):
    outcome = quantized(preset, "bits=2")
    assert outcome.same_as(quantized(preset, "bits=2"))
    plain = quantized("gptq", "bits=2", f"quant.gptq.act_order={preset == 'qronos'}")
    assert not outcome.same_as(plain, "layers.1.")


def test_loaq_of_the_linear_variant_at_qeps_settings_is_qep(quantized):
    settings = "{strength: 0.5, damping: 1.0, roles: [qkv, o, gate_up], variant: linear}"
    loaq = quantized("loaq", f"quant.correction={settings}")
    assert loaq.same_as(quantized("qep"))


@pytest.mark.parametrize("preset", ["gptq", "qep", "loaq"])
def test_methods_of_the_quantized_stream_differ_from_rtn_and_are_deterministic(quantized, preset):
    outcome = quantized(preset)
    assert outcome.same_as(quantized(preset))
    assert not outcome.same_as(quantized("rtn"))


def test_the_first_role_has_nothing_to_correct(quantized):
    qep, rtn = quantized("qep"), quantized("rtn")
    assert qep.same_as(rtn, "layers.0.self_attn.q_proj")
    assert not qep.same_as(rtn, "layers.0.self_attn.o_proj")


def test_roles_that_are_not_corrected_are_rounded_as_they_are(quantized):
    qep, rtn = quantized("qep"), quantized("rtn")
    assert qep.same_as(rtn, "down_proj")


@pytest.mark.parametrize("preset", ["rtn", "awq", "qep"])
def test_tracing_changes_no_weight_and_reports_every_block(quantized, preset):
    traced = quantized(preset, "quant.trace_windows=2")
    assert traced.same_as(quantized(preset, "quant.trace_windows=0"))
    errors = [b.relative_error for b in traced.result.blocks]
    assert len(errors) in (0, 4) and all(0 < e < 10 for e in errors)


def test_the_residual_variants_are_refused_where_a_norm_stands_between(load, quantized):
    with pytest.raises(UserError, match=r"variant=linear"):
        quantized("loaq", loaded=load("gemma3"))


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


@pytest.mark.parametrize("preset", ["awq", "gptq", "qep-faq", "signround"])
def test_the_weights_of_a_block_go_with_it(quantized, monkeypatch, preset):
    twins = []
    make = walk.twin

    def noted(block):
        assert not any(twin() is not None for twin in twins)
        twins.append(weakref.ref(made := make(block)))
        return made

    monkeypatch.setattr(walk, "twin", noted)
    quantized(preset, *(["quant.refinement.steps=1"] if preset == "signround" else []))
    assert len(twins) == 4
