"""Sanity gates: each passes on a sound cell and fails on the one it is made for."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from faqbench.models import load_model
from faqbench.pipeline.gates import check_gates
from faqbench.records import Metric
from faqbench.stages import PlainProgress


@pytest.fixture
def sound(cell, run):
    """A finished record, its model, and a stand-in for what the engine returned."""
    record = run("quant=rtn", "evaluation.protocols=[wikitext2-64]").record
    section = cell("quant=rtn").model
    loaded = load_model(section, torch.float32, torch.device("cpu"), PlainProgress())
    return record, loaded, SimpleNamespace(linears=[None] * 28)


def gate(name, record, loaded, quantized):
    return next(g for g in check_gates(record, loaded, quantized).gates if g.name == name)


def test_a_sound_cell_passes_every_gate(sound):
    assert all(g.passed for g in check_gates(*sound).gates)


def test_the_baseline_has_no_gate_on_quantized_linears(sound):
    record, loaded, _ = sound
    names = {g.name for g in check_gates(record, loaded, None).gates}
    assert "finite" in names and "all_linears_quantized" not in names


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_named(sound, value):
    record, loaded, quantized = sound
    bad = Metric(
        task="arc", name="acc", value=value, stderr=None, n=1, unit="ratio", higher_is_better=True
    )
    found = gate("finite", dataclasses.replace(record, metrics=(bad,)), loaded, quantized)
    assert not found.passed and "arc acc" in found.detail


def test_a_head_that_lost_its_tie_is_found(sound):
    record, loaded, quantized = sound
    head = loaded.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
    found = gate("tied_weights", record, loaded, quantized)
    assert not found.passed and "not tied" in found.detail


def test_linears_that_were_not_quantized_are_counted(sound):
    record, loaded, _ = sound
    found = gate("all_linears_quantized", record, loaded, SimpleNamespace(linears=[None] * 27))
    assert not found.passed and "27 of 28" in found.detail


def test_linears_that_were_skipped_on_purpose_are_said(run):
    record = run("quant=rtn", 'quant.skip=["*.down_proj"]').record
    found = next(g for g in record.gates if g.name == "all_linears_quantized")
    assert found.passed and "24 of 28" in found.detail and "*.down_proj" in found.detail
