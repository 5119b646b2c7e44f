"""The two streams: what each method makes them carry, and what they refuse."""

import dataclasses

import pytest
import torch

from faqbench.config import UserError
from faqbench.models import open_stream
from faqbench.quantization import Calibration, assign_grids, quantize_model
from faqbench.quantization.streams import Streams, reads_full, reads_quantized, reads_sample
from faqbench.stages import PlainProgress

STREAMED = ["gptq", "qep", "loaq", "qep-gptq", "loaq-gptq", "qep-awq", "qep-faq"]


@pytest.fixture
def quant(compose):
    return lambda *overrides: compose("model=tiny-llama", *overrides).quant


@pytest.mark.parametrize(
    ("overrides", "reads"),
    [
        (["quant=rtn"], ""),
        (["quant=awq"], "sample"),
        (["quant=faq"], "sample"),
        (["quant=awq", "quant.search.loss=gram"], ""),
        (["quant=awq", "quant.search.n_grid=0"], ""),
        (["quant=faq", "quant.preview.alpha=0.5"], ""),
        (["quant=awq", "quant.search.loss=module"], "full"),
        (["quant=faq", "quant.search.loss=module", "quant.preview.alpha=0.5"], ""),
        (["quant=rtn", "quant.search.loss=module"], ""),
        (["quant=gptq"], "quantized"),
        (["quant=foem"], "quantized"),
        (["quant=gptq-strong"], "quantized"),
        (["quant=rtn", "quant.clip=mse_unweighted"], ""),
        (["quant=gptaq"], "quantized full"),
        (["quant=qronos"], "quantized full"),
        (["quant=faq", "quant.preview.stream=quantized", "quant.search.loss=gram"], "sample"),
        (["quant=faq", "quant.preview.stream=quantized", "gamma=1", "quant.search.loss=gram"], ""),
        (["quant=qep"], "quantized full"),
        (["quant=qep-awq"], "quantized full sample"),
        (["quant=qep", "quant.correction.strength=0"], ""),
        (["quant=loaq", "quant.correction.strength=0"], "quantized full"),
        (["quant=loaq", "quant.correction={roles: [qkv], strength: 0}"], ""),
    ],
)
def test_a_method_pays_only_for_the_streams_it_reads(quant, overrides, reads):
    section = quant(*overrides)
    asked = {"quantized": reads_quantized, "full": reads_full, "sample": reads_sample}
    assert " ".join(name for name, ask in asked.items() if ask(section)) == reads


def test_a_block_that_is_not_changed_has_no_error(load, quant, tokens):
    loaded = load()
    calibration = Calibration(tokens=tokens, batch_size=2, select="all")
    streams = Streams(loaded, quant("quant=qep"), calibration)
    for block in loaded.architecture.block_modules(loaded.model):
        streams.arrive(block, block)
        report = streams.release()
        assert (report.local_error, report.relative_error) == (0, 0)
        assert report.cosine == pytest.approx(1, abs=1e-5)


@torch.inference_mode()
def test_the_quantized_stream_is_what_the_quantized_model_computes(load, quantized, tokens):
    outcome = quantized("qep-gptq", "bits=2", "quant.trace_windows=5")
    full, broken = load(), outcome.loaded
    hidden = []
    for loaded in (full, broken):
        stream = open_stream(loaded.view, tokens, 2)
        for block in loaded.architecture.block_modules(loaded.model):
            stream.advance(block)
        hidden.append(stream.hidden)
    error = (hidden[1] - hidden[0]).square().sum() / hidden[0].square().sum()
    assert outcome.result.blocks[-1].relative_error == pytest.approx(float(error), rel=1e-4)


def refusal(load, observed, tokens, section, spoil):
    """Spoil a model after its statistics were taken, so that only the streams can notice."""
    loaded = load()
    store = observed(loaded)
    grids = assign_grids(loaded.architecture, section)
    spoil(loaded.model.model.layers)
    calibration = Calibration(tokens=tokens, batch_size=2, select="all")
    with pytest.raises(UserError) as caught:
        quantize_model(loaded, section, grids, store, calibration, PlainProgress())
    return str(caught.value)


def spoil_norm(layers):
    layers[2].input_layernorm.weight[0] = torch.nan


def spoil_weight(layers):
    layers[1].mlp.up_proj.weight[0, 0] = torch.inf


@pytest.mark.parametrize("preset", STREAMED)
def test_activations_that_break_on_the_way_are_refused_naming_block_and_linear(
    load, observed, tokens, quant, preset
):
    text = refusal(load, observed, tokens, quant(f"quant={preset}"), spoil_norm)
    assert "self_attn.q_proj in block 2" in text and "NaN or infinity" in text


@pytest.mark.parametrize("preset", ["rtn", "awq", "faq"])
def test_a_weight_that_is_not_finite_is_refused_naming_block_and_linear(
    load, observed, tokens, quant, preset
):
    section = quant(f"quant={preset}", "quant.trace_windows=0")
    text = refusal(load, observed, tokens, section, spoil_weight)
    assert "mlp.up_proj in block 1" in text and "NaN or infinity" in text


@pytest.mark.parametrize("preset", ["rtn", "awq", "gptq", "qep-gptq"])
def test_every_stage_reports_its_error_and_one_that_is_off_repeats_the_one_before(quantized, preset):
    result = quantized(preset).result
    for report in result.linears:
        stages = (report.nearest_error, report.scaled_error, report.clipped_error, report.relative_error)
        if preset == "rtn":
            assert stages == (None,) * 4
            continue
        nearest, scaled, clipped, final = stages
        assert all(error > 0 for error in stages)
        assert preset != "gptq" or nearest == scaled == clipped != final
        assert preset != "awq" or clipped == final


@pytest.mark.parametrize(
    "overrides",
    [
        ("awq",),
        ("faq",),
        ("qep-faq",),
        ("faq-gptq", "calibration.tokens=norm_cap"),
        ("faq", "quant.preview.source=next_linear", "quant.search.loss=module"),
    ],
)
def test_statistics_that_are_gathered_on_the_way_give_the_same_weights_and_reports(quantized, overrides):
    stored, gathered = quantized(*overrides), quantized(*overrides, means_only=True)
    assert gathered.same_as(stored)
    assert untimed(gathered.result) == untimed(stored.result)


def untimed(result):
    linears = [dataclasses.replace(report, seconds=0) for report in result.linears]
    return linears, result.blocks
