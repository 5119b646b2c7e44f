"""Gates that compare a cell with finished runs: each fires on the pair it is made for."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from faqbench.config import run_id
from faqbench.pipeline import neighbours
from faqbench.pipeline.evaluating import Evaluated
from faqbench.pipeline.neighbours import Neighbours
from faqbench.records import SCHEMA_VERSION, RunData, RunRecord, compact_run, write_run

NAME = "wikitext2-64"
SCORED = f"evaluation.protocols=[{NAME}]"


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "others"


@pytest.fixture
def make(cell):
    """A finished run of a method with token losses of our own, shifted from one common text."""

    def build(shift, *overrides):
        experiment = cell(*overrides, SCORED)
        noise = np.random.default_rng(len(str(overrides))).normal(0, 0.01, (30, 63))
        text = np.random.default_rng(1).normal(3, 1, (30, 63))
        seed = f"calibration of seed {experiment.calibration.seed}"
        record = RunRecord(
            schema_version=SCHEMA_VERSION,
            run_id=run_id(experiment),
            status="finished",
            error=None,
            config=experiment.model_dump(mode="json"),
            environment={},
            fingerprints={"weights": "w", "calibration": seed, f"protocol/{NAME}": "t"},
            stages={},
            metrics=(),
            bits_per_weight=3.25,
            checkpoint_bytes=1,
            peak_memory_bytes=1,
            extra={"evaluation": {NAME: {"n_windows": 30, "verified": False}}},
        )
        return RunData(
            record=record,
            items=Evaluated().items,
            tokens={NAME: (text + shift + noise).astype(np.float32)},
            layers=pd.DataFrame(),
        )

    return build


def keep(runs, *all_data):
    for data in all_data:
        write_run(runs, data, "config: {}\n")
    return Neighbours(runs)


def seen(data):
    return data.record, Evaluated(tokens=data.tokens, items=data.items)


def test_nothing_to_compare_with_passes_and_says_so(make, runs):
    data = make(0.0, "quant=awq")
    neighbours = Neighbours(runs)
    for compare in (neighbours.not_worse_than_rtn, neighbours.not_worse_than_fewer_bits):
        found = compare(*seen(data))
        assert found.passed and found.detail == "nothing to compare with"


def test_a_method_that_is_worse_than_rounding_on_its_grid_is_found(make, runs):
    rtn, awq = make(0.0, "quant=rtn"), make(0.2, "quant=awq")
    found = keep(runs, rtn).not_worse_than_rtn(*seen(awq))
    assert not found.passed
    assert f"worse than {rtn.record.run_id} (perplexity ratio 1.2" in found.detail


def test_rounding_that_comes_after_a_method_and_beats_it_is_marked_itself(make, runs):
    rtn, awq = make(0.0, "quant=rtn"), make(0.2, "quant=awq")
    found = keep(runs, awq).not_worse_than_rtn(*seen(rtn))
    assert not found.passed and f"better than {awq.record.run_id}" in found.detail


@pytest.mark.parametrize("shift", [-0.2, 0.0])
def test_a_method_that_is_better_or_no_different_passes(make, runs, shift):
    rtn, awq = make(0.0, "quant=rtn"), make(shift, "quant=awq")
    assert keep(runs, rtn).not_worse_than_rtn(*seen(awq)).passed
    assert keep(runs, awq).not_worse_than_rtn(*seen(rtn)).passed


@pytest.mark.parametrize("override", ["bits=4", "group_size=64", "symmetric=true"])
def test_another_grid_is_not_compared(make, runs, override):
    rtn, awq = make(0.0, "quant=rtn", override), make(0.2, "quant=awq")
    assert keep(runs, rtn).not_worse_than_rtn(*seen(awq)).detail == "nothing to compare with"


def test_other_tokens_are_not_compared(make, runs):
    rtn, awq = make(0.0, "quant=rtn"), make(0.2, "quant=awq")
    fingerprints = {**rtn.record.fingerprints, f"protocol/{NAME}": "other"}
    record = dataclasses.replace(rtn.record, fingerprints=fingerprints)
    other = dataclasses.replace(rtn, record=record)
    assert keep(runs, other).not_worse_than_rtn(*seen(awq)).detail == "nothing to compare with"


def test_of_many_runs_the_latest_are_compared(make, runs, monkeypatch):
    monkeypatch.setattr(neighbours, "_MOST_COMPARED", 2)
    rtn = make(0.0, "quant=rtn")
    others = [
        dataclasses.replace(
            rtn, record=dataclasses.replace(rtn.record, run_id=f"rtn-{day}", started=f"2025-01-0{day}")
        )
        for day in (1, 2, 3)
    ]
    found = keep(runs, *others).not_worse_than_rtn(*seen(make(0.0, "quant=awq")))
    assert found.passed and found.detail == "compared with 2 runs"


def test_a_failed_run_is_not_compared(make, runs):
    rtn, awq = make(0.0, "quant=rtn"), make(0.2, "quant=awq")
    failed = dataclasses.replace(rtn, record=dataclasses.replace(rtn.record, status="failed"))
    assert keep(runs, failed).not_worse_than_rtn(*seen(awq)).detail == "nothing to compare with"


def test_more_bits_that_are_worse_than_fewer_are_found_in_either_order(make, runs):
    three, four = make(0.0, "quant=awq", "bits=3"), make(0.2, "quant=awq", "bits=4")
    found = keep(runs, three).not_worse_than_fewer_bits(*seen(four))
    assert not found.passed and f"worse than {three.record.run_id}" in found.detail
    found = keep(runs / "b", four).not_worse_than_fewer_bits(*seen(three))
    assert not found.passed and f"better than {four.record.run_id}" in found.detail


def test_more_bits_that_are_better_than_fewer_pass(make, runs):
    three, four = make(0.2, "quant=awq", "bits=3"), make(0.0, "quant=awq", "bits=4")
    found = keep(runs, three).not_worse_than_fewer_bits(*seen(four))
    assert found.passed and f"better than {three.record.run_id}" in found.detail


@pytest.mark.parametrize("override", ["seed=1", "gamma=0.5", "quant=rtn"])
def test_bits_are_compared_where_nothing_else_differs(make, runs, override):
    three, four = make(0.0, "quant=faq", "bits=3", override), make(0.2, "quant=faq", "bits=4")
    found = keep(runs, three).not_worse_than_fewer_bits(*seen(four))
    assert found.detail == "nothing to compare with"


def test_a_compact_run_is_compared_by_its_window_means(make, runs):
    rtn, awq = make(0.0, "quant=rtn"), make(0.2, "quant=awq")
    found = keep(runs, compact_run(rtn)).not_worse_than_rtn(*seen(awq))
    assert not found.passed and "perplexity ratio 1.2" in found.detail


def test_losses_that_are_not_finite_are_not_compared(make, runs):
    rtn, awq = make(0.0, "quant=rtn"), make(0.2, "quant=awq")
    awq.tokens[NAME][0, 0] = np.nan
    assert keep(runs, rtn).not_worse_than_rtn(*seen(awq)).detail == "nothing to compare with"


def correct(frac, n=400):
    values = (np.arange(n) < frac * n).astype(float)
    return pd.DataFrame({"task": "arc", "item": range(n), "metric": "acc", "value": values})


def tasks_only(data: RunData, items):
    config = {**data.record.config, "evaluation": {"protocols": [], "tasks": ["arc"]}}
    fingerprints = {**data.record.fingerprints, "task/arc": "same"}
    record = dataclasses.replace(data.record, config=config, fingerprints=fingerprints)
    return dataclasses.replace(data, record=record, items=items)


@pytest.mark.parametrize(("accuracy", "passes"), [(0.4, False), (0.5, True), (0.6, True)])
def test_without_a_protocol_accuracies_are_compared(make, runs, accuracy, passes):
    rtn = tasks_only(make(0.0, "quant=rtn"), correct(0.5))
    awq = tasks_only(make(0.0, "quant=awq"), correct(accuracy))
    found = keep(runs, rtn).not_worse_than_rtn(*seen(awq))
    assert found.passed == passes and "over tasks" in found.detail


def test_tokens_that_differ_between_runs_of_one_model_are_found(make, runs):
    first, second = make(0.0, "quant=rtn"), make(0.0, "quant=awq")
    fingerprints = {**first.record.fingerprints, f"protocol/{NAME}": "other"}
    record = dataclasses.replace(first.record, fingerprints=fingerprints)
    found = keep(runs, dataclasses.replace(first, record=record)).same_tokens(second.record)
    assert not found.passed
    assert found.detail == f"other tokens than {NAME} of {first.record.run_id}"


def test_tokens_that_nobody_knows_pass_and_are_said_to_be_unverified(make, runs):
    found = Neighbours(runs).same_tokens(make(0.0, "quant=rtn").record)
    assert found.passed and f"no count and hash are known for {NAME}" in found.detail


def with_items_alone(data):
    """The same run, scored on a task's items and no protocol."""
    record = data.record
    section = record.config["evaluation"] | {"protocols": [], "tasks": ["quiz"]}
    record = dataclasses.replace(
        record,
        config=record.config | {"evaluation": section},
        fingerprints=record.fingerprints | {"task/quiz": "q"},
    )
    rows = [{"task": "quiz", "item": i, "metric": "acc", "value": float(i % 2)} for i in range(40)]
    return dataclasses.replace(data, record=record, items=pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("name", "scored"), [("tokens.npz", lambda data: data), ("items.parquet", with_items_alone)]
)
def test_damaged_scores_of_another_run_are_a_note_and_the_cell_keeps_its_work(make, runs, name, scored):
    rtn, awq = scored(make(0.0, "quant=rtn")), scored(make(0.2, "quant=awq"))
    neighbours = keep(runs, rtn)
    assert neighbours.not_worse_than_rtn(*seen(awq)).detail != "nothing to compare with"
    (runs / rtn.record.run_id / name).write_bytes(b"PAR1 torn PAR1")
    found = neighbours.not_worse_than_rtn(*seen(awq))
    assert found.passed
    assert f"{rtn.record.run_id} is left out: {name} cannot be read" in found.detail


def test_tables_that_no_gate_compares_are_not_read(make, runs):
    rtn, awq = make(0.0, "quant=rtn"), make(0.2, "quant=awq")
    neighbours = keep(runs, rtn)
    before = neighbours.not_worse_than_rtn(*seen(awq))
    for name in ("items.parquet", "layers.parquet", "record.json"):
        (runs / rtn.record.run_id / name).write_bytes(b"PAR1 torn PAR1")
    assert neighbours.not_worse_than_rtn(*seen(awq)) == before and not before.passed
