"""Quantized weights as a cached stage: the record is the same, and no model is loaded for it."""

import shutil

import pytest

from faqbench import pipeline
from faqbench.cli import main
from faqbench.models import ModelHolder, loading
from faqbench.records import differences
from faqbench.stages import PlainProgress, StageCache, list_entries

SCORED = "evaluation.protocols=[wikitext2-64]"
METHODS = ["rtn", "faq", "gptq", "qep", "qep-awq", "loaq-gptq"]


@pytest.fixture
def loads(monkeypatch):
    """How often a model is loaded from its source."""
    count = []
    original = loading.random_model

    def note(settings):
        count.append(settings)
        return original(settings)

    monkeypatch.setattr(loading, "random_model", note)
    return count


def entries(cache, stage):
    folder = cache / "stages" / stage
    return sorted(p for p in folder.glob("*") if p.is_dir())


@pytest.mark.parametrize("quant", METHODS)
def test_a_record_made_of_cached_weights_is_the_same(run, tmp_path, quant):
    first = run(f"quant={quant}", SCORED)
    for stage in ("perplexity", "statistics"):
        shutil.rmtree(tmp_path / "cache" / "stages" / stage, ignore_errors=True)
    again = run(f"quant={quant}", SCORED)
    assert again.record.stages["quantize"].cached and not again.record.stages["evaluate"].cached
    assert differences(first, again) == []


def test_cached_weights_need_no_statistics(run, tmp_path):
    run("quant=awq", SCORED)
    shutil.rmtree(tmp_path / "cache" / "stages" / "statistics")
    assert "statistics" not in run("quant=awq", SCORED).record.stages
    assert entries(tmp_path / "cache", "statistics") == []


def test_half_precision_weights_are_cached_as_they_were_evaluated(run, tmp_path):
    overrides = ("quant=awq", SCORED, "dtype=bfloat16", "calibration.dtype=bfloat16")
    first = run(*overrides)
    shutil.rmtree(tmp_path / "cache" / "stages" / "perplexity")
    assert differences(first, run(*overrides)) == []


@pytest.mark.parametrize(
    "override", ["bits=4", "seed=1", "gamma=0.5", "quant.skip=['*.down_proj']", "symmetric=true"]
)
def test_other_settings_are_other_weights(run, after, override):
    _, cache = after("quant=faq")
    before = entries(cache, "quantized")
    assert not run("quant=faq", override, cache=cache).record.stages["quantize"].cached
    assert len(entries(cache, "quantized")) == len(before) + 1


def test_cells_that_differ_in_their_evaluation_alone_share_their_weights(run, after):
    _, cache = after("quant=faq")
    before = entries(cache, "quantized")
    other = run("quant=faq", "evaluation.protocols=[wikitext2-32]", "dtype=bfloat16", cache=cache)
    assert other.record.stages["quantize"].cached and entries(cache, "quantized") == before


def test_a_process_loads_a_model_once_for_cells_of_all_kinds(cell, tmp_path, loads):
    holder, cache = ModelHolder(), tmp_path / "cache"
    for quant in ("fp", "rtn", "awq", "gptq", "fp"):
        experiment = cell(f"quant={quant}", SCORED, "dtype=bfloat16")
        pipeline.run(experiment, cache=StageCache(cache), progress=PlainProgress(), holder=holder)
    assert holder.n_loads == len(loads) == 1


def test_cells_one_after_another_give_what_each_gives_alone(cell, tmp_path):
    holder, shared = ModelHolder(), StageCache(tmp_path / "shared")
    for quant in ("gptq", "fp", "faq", "rtn"):
        experiment = cell(f"quant={quant}", SCORED, "dtype=bfloat16")
        together = pipeline.run(experiment, cache=shared, progress=PlainProgress(), holder=holder)
        alone = StageCache(tmp_path / f"alone-{quant}")
        apart = pipeline.run(experiment, cache=alone, progress=PlainProgress())
        assert differences(together, apart) == []


def test_the_record_names_the_entries_that_it_was_made_from(run, tmp_path):
    uses = run("quant=awq", SCORED).record.extra["stage_keys"]
    stages = [use["entry"].split("/")[0] for use in uses]
    assert {"weights", "calibration", "statistics", "quantized", "perplexity"} <= set(stages)
    for use in uses:
        assert (tmp_path / "cache" / "stages" / use["entry"] / "manifest.json").is_file()
        assert use["n_bytes"] > 0 and not use["cached"]


def test_nothing_that_a_run_was_made_of_counts_as_unused(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAQBENCH_CACHE", str(tmp_path / "cache"))
    run("quant=awq", SCORED)
    there = list_entries(tmp_path / "cache")
    assert {"weights_check", "overlap", "means"} <= {entry.stage for entry in there}
    assert main(["cache", "prune", "unused=true", f"runs={tmp_path / 'runs'}"]) == 0
    assert "Removed 0 entries" in capsys.readouterr().out
    assert list_entries(tmp_path / "cache") == there


LEARNED = (
    "quant=lrquant", "bits=2", SCORED, "quant.refinement.steps=8", "quant.refinement.clip_rate=0.1",
)  # fmt: skip
ADAPTED = (*LEARNED, "quant.refinement.adapt_on=evaluation")


def test_the_last_block_learns_from_the_text_that_is_scored_and_every_page_says_so(run, tmp_path):
    plain, adapted = run(*LEARNED), run(*ADAPTED)
    before, after = (data.layers.groupby("block")["refine_error"].first() for data in (plain, adapted))
    assert before.iloc[:-1].equals(after.iloc[:-1]) and before.iloc[-1] != after.iloc[-1]
    (gate,) = [g for g in adapted.record.gates if g.name == "unseen_text"]
    assert not gate.passed and "the last block learned on it" in gate.detail
    assert any("text of wikitext2-64, which is scored" in w for w in adapted.record.warnings)
    assert all(g.name != "unseen_text" for g in plain.record.gates)
    # Adapting starts without scales from all windows, so that it is another result for another text.
    other = run(*ADAPTED, "limit=2")
    assert len(entries(tmp_path / "cache", "quantized")) == 3
    assert other.layers["refine_error"].iloc[-1] != adapted.layers["refine_error"].iloc[-1]


@pytest.mark.parametrize("quant", ["w4a4-lrquant", "signround"])
def test_an_adapted_block_is_the_same_from_a_streamed_model(run, tmp_path, quant):
    blocks = "model.random.num_hidden_layers=4"
    overrides = (f"quant={quant}", SCORED, "quant.refinement.steps=3", ADAPTED[-1], blocks)
    whole = run(*overrides)
    shutil.rmtree(tmp_path / "cache")
    streamed = run(*overrides, "memory.host_gigabytes=0.0009")
    assert not streamed.record.stages["quantize"].cached
    assert differences(whole, streamed) == []


def test_text_that_calibrated_a_method_fails_the_gate_of_unseen_text(run):
    leaked = run("quant=awq", "scenario=label-leak", SCORED).record
    (gate,) = [g for g in leaked.gates if g.name == "unseen_text"]
    assert not gate.passed and gate.detail.endswith("calibrated on it")
    assert all(
        g.name != "unseen_text" for g in run("quant=rtn", "scenario=label-leak", SCORED).record.gates
    )
