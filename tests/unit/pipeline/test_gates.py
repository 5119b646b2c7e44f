"""Sanity gates, each on a sound cell and on the one it is made for; calibrating on what is evaluated."""

import dataclasses
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from faqbench.config import UserError
from faqbench.corpora import part_of
from faqbench.models import load_model
from faqbench.pipeline.evaluating import Evaluated
from faqbench.pipeline.gates import Finished, check_gates, look_over
from faqbench.pipeline.neighbours import Neighbours
from faqbench.records import Metric
from faqbench.stages import PlainProgress

SCORED = "evaluation.protocols=[wikitext2-64]"
CELL = ("quant=rtn", SCORED, "model.random.num_hidden_layers=4")
LINEAR = dict.fromkeys(("relative_error", "seconds"), 0.1) | {"block": 3, "linear": "mlp.up_proj"}


@pytest.fixture(scope="module")
def look(compose):
    """Look over a tiny model after something was done to it."""

    @cache
    def make(change=lambda model: None):
        section = compose("model=tiny-llama").model
        loaded = load_model(section, torch.float32, torch.device("cpu"), PlainProgress())
        change(loaded.model)
        return look_over(loaded.view)

    return make


@pytest.fixture
def sound(ran, look, tmp_path):
    """A finished cell, with a stand-in for what the engine returned, and no other cell beside it."""
    data = ran(*CELL)
    return Finished(
        record=data.record,
        evaluated=Evaluated(tokens=data.tokens),
        weights=look(),
        quantized=SimpleNamespace(linears=[SimpleNamespace(**LINEAR)] * 28, rotation=None),
        neighbours=Neighbours(tmp_path / "runs"),
    )


def gate(name, cell, **changed):
    return next(g for g in check_gates(dataclasses.replace(cell, **changed)) if g.name == name)


def metric(task, value, stderr=0.01, name="acc"):
    return Metric(
        task=task, name=name, value=value, stderr=stderr, n=500, unit="ratio", higher_is_better=True
    )


def test_a_sound_cell_passes_every_gate(sound):
    names = [g.name for g in check_gates(sound) if g.passed]
    assert names == [
        "finite",
        "tied_weights",
        "all_linears_quantized",
        "same_tokens",
        "not_worse_than_rtn",
        "not_worse_than_fewer_bits",
    ]


def test_the_baseline_has_no_gates_on_quantized_linears(sound):
    names = [g.name for g in check_gates(dataclasses.replace(sound, quantized=None))]
    assert names == ["finite", "tied_weights", "same_tokens"]


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_is_named(sound, value):
    record = dataclasses.replace(sound.record, metrics=(metric("arc", value),))
    found = gate("finite", sound, record=record)
    assert not found.passed and "arc acc" in found.detail


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["wikitext2-64", "wikitext2-64.kl"])
def test_a_token_that_is_not_finite_is_counted(sound, name, value):
    values = np.ones((4, 63), np.float32)
    values[1, 2] = value
    found = gate("finite", sound, evaluated=Evaluated(tokens={name: values}))
    assert not found.passed and f"tokens of {name} (1 of 252)" in found.detail


def test_an_item_that_is_not_finite_is_named(sound):
    row = {"task": "arc", "item": 0, "metric": "acc", "value": np.nan}
    found = gate("finite", sound, evaluated=Evaluated(items=pd.DataFrame([row])))
    assert not found.passed and "items of arc" in found.detail


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(sound, look, value):
    def break_one(model):
        model.model.layers[2].mlp.up_proj.weight.data[3, 4] = value

    found = gate("finite", sound, weights=look(break_one))
    assert not found.passed and "weights of model.layers.2.mlp.up_proj.weight" in found.detail


def test_a_linears_report_that_is_not_finite_is_named(sound):
    broken = SimpleNamespace(**{**LINEAR, "relative_error": float("nan")})
    found = gate("finite", sound, quantized=SimpleNamespace(linears=[broken], rotation=None))
    assert not found.passed and "report of block 3 mlp.up_proj" in found.detail


def test_a_head_that_lost_its_tie_is_found(sound, look):
    def untie(model):
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)

    found = gate("tied_weights", sound, weights=look(untie))
    assert not found.passed and "not tied" in found.detail


def test_linears_that_were_not_quantized_are_counted(sound):
    found = gate("all_linears_quantized", sound, quantized=SimpleNamespace(linears=[], rotation=None))
    assert not found.passed and "0 of 28" in found.detail


@pytest.mark.parametrize(("n_found", "passes"), [(24, True), (23, False), (25, False)])
def test_linears_that_were_skipped_on_purpose_are_said_and_counted(sound, ran, n_found, passes):
    record = ran(*CELL, 'quant.skip=["*.down_proj"]').record
    quantized = SimpleNamespace(linears=[SimpleNamespace(**LINEAR)] * n_found, rotation=None)
    found = gate("all_linears_quantized", sound, record=record, quantized=quantized)
    assert found.passed == passes
    assert f"{n_found} of 28 linears, 4 skipped by *.down_proj" in found.detail


def with_tasks(cell, *metrics, chance):
    record = dataclasses.replace(
        cell.record,
        metrics=metrics,
        extra={"evaluation": {"all": {"chance": chance}}},
        config={**cell.record.config, "evaluation": {"tasks": ["all"], "protocols": []}},
    )
    return gate("above_chance", cell, record=record)


@pytest.mark.parametrize(
    ("value", "stderr", "passes", "says"),
    [
        (0.26, 0.02, False, "not above it: arc"),
        (0.20, 0.02, False, "not above it: arc"),
        (0.35, 0.02, True, "mean accuracy 0.350 ± 0.020, chance 0.250"),
        (0.26, 0.10, True, "too few items to tell"),
    ],
)
def test_accuracy_at_chance_is_found_where_there_are_items_enough(sound, value, stderr, passes, says):
    found = with_tasks(sound, metric("arc", value, stderr), chance={"arc": 0.25})
    assert found.passed == passes and says in found.detail


def test_one_task_at_chance_is_named_where_the_mean_is_above(sound):
    metrics = (metric("arc", 0.5), metric("boolq", 0.49))
    found = with_tasks(sound, *metrics, chance={"arc": 0.25, "boolq": 0.5})
    assert found.passed and "not above it: boolq" in found.detail


def test_tasks_without_choices_have_no_chance(sound):
    found = with_tasks(sound, metric("lambada", 0.0), chance={})
    assert found.passed and "no multiple-choice task" in found.detail


@pytest.mark.parametrize(("n_truncated", "passed"), [(0, True), (2, True), (3, False)])
def test_more_than_one_percent_of_requests_cut_at_the_context_fails_a_gate(sound, n_truncated, passed):
    record = dataclasses.replace(
        sound.record,
        config=sound.record.config
        | {"evaluation": sound.record.config["evaluation"] | {"tasks": ["arc_easy_validation"]}},
        extra={
            "evaluation": {
                "arc_easy_validation": {"config": {"n_truncated": n_truncated, "n_requests": 200}}
            }
        },
    )
    found = gate("requests_fit", sound, record=record)
    assert found.passed is passed
    cut = f"{n_truncated} of 200 requests of arc_easy_validation"
    assert (cut in found.detail) is bool(n_truncated)


def in_calibration_part(texts):
    return next(text for text in texts if part_of(text) == "calibration")


@pytest.fixture
def leaked(tmp_path):
    """A calibration file and an evaluation file that share one passage of 60 words."""
    shared = " ".join(f"word{i}" for i in range(60))
    own = [in_calibration_part(f"note {j} {i} is here " * 9 for j in range(99)) for i in range(8)]
    copy = in_calibration_part(f"{shared} {j}" for j in range(99))
    calibration, evaluation = tmp_path / "calibration.txt", tmp_path / "evaluation.txt"
    calibration.write_text("\n\n".join([*own, copy]))
    other = [f"line {i} of it, " * 9 for i in range(40)]
    evaluation.write_text("\n\n".join([*other, shared]))
    n_samples = len(calibration.read_bytes()) // 32  # all of it
    return (
        f"calibration.domain={calibration}",
        f"data.wikitext2_path={evaluation}",
        f"calibration.n_samples={n_samples}",
        SCORED,
    )


def test_shared_text_is_refused_with_the_count_and_the_way_out(run, leaked):
    with pytest.raises(
        UserError,
        match=r"'wikitext2-64' shares 1 of its 41 passages.*scenario\.allow_overlap=\[wikitext2-64\]",
    ):
        run("quant=awq", *leaked)


@pytest.mark.parametrize("name", ["wikitext2-64", "wikitext2-*", "*"])
def test_what_is_allowed_by_name_runs_and_is_counted(run, leaked, name):
    record = run("quant=awq", *leaked, f"scenario.allow_overlap=['{name}']").record
    assert record.extra["calibration"]["overlap"] == {"wikitext2-64": 1}


def test_another_name_allows_nothing(run, leaked):
    with pytest.raises(UserError, match="shares 1 of its 41 passages"):
        run("quant=awq", *leaked, "scenario.allow_overlap=[arc_easy_validation]")


def test_text_of_its_own_is_counted_as_none(run, leaked):
    clean = [o for o in leaked if not o.startswith("data")]
    record = run("quant=awq", *clean).record
    assert record.extra["calibration"]["overlap"] == {"wikitext2-64": 0}


def test_a_method_that_reads_no_calibration_is_not_guarded(run, leaked):
    assert "calibration" not in run("quant=rtn", *leaked).record.extra


def test_a_tasks_passages_that_are_calibrated_on_are_refused_too(run, leaked, monkeypatch):
    shared = "Passage: " + " ".join(f"word{i}" for i in range(60))
    asked = []

    def passages(name, experiment, _progress):
        asked.append((name, experiment.n_documents()))
        return [shared, "is it so"]

    monkeypatch.setattr("faqbench.pipeline.gates.task_passages", passages)
    tasks = ("evaluation.protocols=[]", "evaluation.tasks=[boolq_validation]", "limit=5")
    with pytest.raises(UserError, match="'boolq_validation' shares 1 of its 1 passages"):
        run("quant=awq", *leaked, *tasks)
    assert asked == [("boolq_validation", 5)]
