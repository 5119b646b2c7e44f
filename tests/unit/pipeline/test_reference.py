"""Divergence from full precision: one cached stage for a sweep, metrics and arrays in every record."""

import numpy as np
import pytest
import torch

from faqbench.models import ModelHolder
from faqbench.pipeline.cell import Cell
from faqbench.pipeline.graph import stages_of
from faqbench.stages import PlainProgress, StageCache

SCORED = "evaluation.protocols=[wikitext2-64]"
NAME = "wikitext2-64"


def test_a_quantized_cell_has_divergence_and_agreement(run):
    data = run("quant=rtn", SCORED)
    assert 0 < data.record.metric(NAME, "kl_divergence").value < 1
    assert 0 < data.record.metric(NAME, "top1_agreement").value < 1
    shapes = {data.tokens[key].shape for key in (NAME, f"{NAME}.kl", f"{NAME}.agrees")}
    assert len(shapes) == 1
    assert data.tokens[f"{NAME}.agrees"].dtype == np.uint8


def test_the_baseline_has_perplexity_alone(run):
    data = run("quant=fp", SCORED)
    assert [m.name for m in data.record.metrics] == ["perplexity"]
    assert set(data.tokens) == {NAME}


def test_more_bits_diverge_less(run):
    kl = [
        run("quant=rtn", f"bits={bits}", SCORED).record.metric(NAME, "kl_divergence").value
        for bits in (2, 4, 8)
    ]
    assert kl[0] > 3 * kl[1] > 9 * kl[2] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_baselines_perplexity_is_the_same_with_and_without_a_reference(run, dtype):
    cells = [run("quant=fp", SCORED, f"dtype={dtype}", f"evaluation.kl={kl}") for kl in (True, False)]
    assert np.array_equal(cells[0].tokens[NAME], cells[1].tokens[NAME])
    assert cells[0].record.metrics == cells[1].record.metrics


@pytest.mark.parametrize("first", ["fp", "rtn"])
def test_the_reference_is_taken_once_for_a_sweep_whoever_comes_first(run, first):
    second = {"fp": "rtn", "rtn": "fp"}[first]
    assert not run(f"quant={first}", SCORED, "dtype=bfloat16").record.stages["reference"].cached
    assert run(f"quant={second}", SCORED, "dtype=bfloat16").record.stages["reference"].cached


def test_nothing_is_referred_to_where_divergence_is_not_wanted(run):
    data = run("quant=rtn", SCORED, "evaluation.kl=false")
    assert "reference" not in data.record.stages
    assert [m.name for m in data.record.metrics] == ["perplexity"]


def test_the_reference_leaves_the_loaded_weights_as_they_were(cell, tmp_path):
    experiment = cell("quant=rtn", SCORED, "dtype=bfloat16")
    cache, progress, stages = StageCache(tmp_path / "cache"), PlainProgress(), stages_of(experiment)
    own = Cell(experiment, cache, progress, ModelHolder(), stages)
    loaded = own.model.pristine()
    before = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    own.get(f"reference {NAME}")
    after = loaded.model.state_dict()
    assert all(torch.equal(before[k], after[k]) and after[k].dtype == torch.float32 for k in before)


def test_throughput_and_memory_are_recorded_per_protocol_and_task(run):
    for quant in ("fp", "rtn"):
        facts = run(f"quant={quant}", SCORED).record.extra["evaluation"][NAME]
        assert facts["tokens_per_second"] > 0 and facts["seconds"] > 0
        assert facts["peak_memory_bytes"] > 2**20
