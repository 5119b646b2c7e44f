"""Plans: what exists, what is due, who shares it; estimates that learn from records; peaks of memory."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from faqbench.cli.composing import compose_cells, parse_flags
from faqbench.cli.conclusion import estimates_of
from faqbench.cli.plan import _summary
from faqbench.models import load_model, loading
from faqbench.pipeline.environment import PeakMemory
from faqbench.pipeline.graph import look_up
from faqbench.pipeline.planning import (
    Estimator,
    compare_with_plan,
    earlier_records,
    make_plan,
    rate,
    seconds_left,
    total_error,
)
from faqbench.pipeline.planning.rate import shape_of
from faqbench.records import find_runs, read_run, write_run
from faqbench.stages import PlainProgress, StageCache

SCORED = "evaluation.protocols=[wikitext2-64]"
CPU = torch.device("cpu")
TINY = ["tiny-llama", "tiny-qwen2", "tiny-qwen3", "tiny-mistral", "tiny-gemma3", "tiny-phi3"]


@pytest.fixture
def plan(cell, tmp_path):
    def make(*cells):
        experiments = [cell(*overrides) for overrides in cells]
        records, _ = find_runs(tmp_path / "runs")
        with StageCache(tmp_path / "cache") as cache:
            return make_plan(experiments, records, cache)

    return make


@pytest.fixture
def no_model(monkeypatch):
    """Let no model be loaded from now on."""

    def refuse(settings):
        raise AssertionError("a model was loaded")

    return lambda: monkeypatch.setattr(loading, "random_model", refuse)


def stages(plan, kind):
    return [s for s in plan.stages if s.need.kind == kind]


@pytest.mark.parametrize("name", TINY)
def test_a_shape_has_the_sizes_of_the_loaded_model(compose, name):
    section = compose(f"model={name}").model
    loaded = load_model(section, torch.float32, CPU, PlainProgress())
    shape = shape_of(section.random)
    weights = sum(loaded.model.get_submodule(n).weight.numel() for n in loaded.architecture.linear_names())
    assert shape.n_block_weights == weights
    parameters = sum(p.numel() for p in loaded.model.parameters())
    assert shape.n_parameters == pytest.approx(parameters, rel=0.05)


def test_a_configuration_without_sizes_has_no_shape():
    assert shape_of({"hidden_size": 64}) is None


def test_without_a_record_or_a_shape_nothing_is_estimated(plan, cell, monkeypatch):
    assert not plan((SCORED,)).is_blind
    monkeypatch.setattr("faqbench.pipeline.planning.plan.model_config", lambda section: None)
    blind = plan((SCORED,))
    assert blind.is_blind and estimates_of([cell(SCORED)]) == {}
    assert _summary(blind, "basic", 1).endswith("configuration is not on this machine yet.")


def test_nothing_is_there_before_the_first_run_and_cells_share_what_they_can(plan, no_model):
    no_model()
    found = plan(("quant=fp", SCORED), ("quant=awq", SCORED), ("quant=faq", SCORED))
    assert [c.status for c in found.cells] == ["new"] * 3
    assert [(s.n_cells, s.need.is_due) for s in stages(found, "statistics")] == [(2, True)]
    assert [s.n_cells for s in stages(found, "weights")] == [3]
    assert len(stages(found, "quantized")) == 2 and not any(s.need.exists for s in found.stages)


def test_a_stage_is_due_in_the_first_cell_that_needs_it_alone(plan):
    first, second = plan(("quant=awq", SCORED), ("quant=faq", SCORED)).cells
    own = ("quantized", "perplexity", "weights_check")
    assert second.n_due == len(own)
    shared = (
        *("weights", "tokenizer", "windows", "calibration", "overlap", "reference", "statistics"),
        *("calibration reference", "means drawn", "means reference", "bias_distance"),
    )
    assert first.n_due == len(own) + len(shared)
    unread = ("means drawn", "means reference")  # once the distance is there, nobody asks for them
    assert second.n_reused == len(shared) - len(unread)


@pytest.mark.parametrize("quant", ["fp", "rtn", "awq", "gptq", "qep-faq"])
def test_after_a_run_the_plan_knows_every_stage_of_it(run, plan, no_model, quant):
    run(f"quant={quant}", SCORED)
    no_model()
    found = plan((f"quant={quant}", SCORED, "rerun=true"))
    assert [s.need for s in found.stages if not s.need.exists] == []
    assert found.cells[0].n_due == 0


def test_cached_weights_make_their_statistics_unneeded(run, plan, tmp_path):
    import shutil

    run("quant=awq", SCORED)
    shutil.rmtree(tmp_path / "cache" / "stages" / "statistics")
    (statistics,) = stages(plan(("quant=awq", SCORED, "rerun=true")), "statistics")
    assert not statistics.need.exists and not statistics.need.is_due


def test_finished_cells_are_skipped_and_failed_ones_tried_again(run, cell, plan):
    from faqbench import pipeline

    run("quant=rtn", SCORED)
    pipeline.write_failure(cell("quant=awq", SCORED), "no")
    found = plan(("quant=rtn", SCORED), ("quant=awq", SCORED), ("quant=fp", SCORED))
    assert [c.status for c in found.cells] == ["finished", "failed", "new"]
    assert found.cells[0].seconds == 0 and found.cells[0].n_due == 0
    assert all(s.n_cells <= 2 for s in found.stages)


def test_a_cell_that_is_asked_for_twice_is_planned_once(plan):
    assert len(plan(("quant=fp", "bits=3"), ("quant=fp", "bits=4")).cells) == 1


def test_what_is_not_known_is_stood_in_for_alike_in_all_cells(cell, tmp_path):
    def entries(*overrides):
        needs = look_up(cell(*overrides), StageCache(tmp_path / "cache"), made=())
        return {need.entry for need in needs}

    awq, faq, seed = (entries(*o) for o in (["quant=awq"], ["quant=faq"], ["quant=awq", "seed=1"]))
    kinds = [sorted(entry.partition("/")[0] for entry in own) for own in (awq - faq, awq - seed)]
    assert kinds[0] == ["quantized", "weights_check"]
    assert set(kinds[1]) == {"calibration", "statistics", "means", "bias_distance", *kinds[0]}


def test_a_model_that_is_not_here_yet_is_one_to_fetch_for_all_cells(cell, tmp_path):
    hub = ("model.source=hub", "model.hub_id=nobody/nothing", "model.random=null", "model.tokenizer=null")
    needs = [
        look_up(cell("quant=rtn", *hub, *own), StageCache(tmp_path / "cache"), made=())
        for own in ([SCORED], ["bits=4"])
    ]
    first, second = ({n.kind: n.entry for n in own} for own in needs)
    assert first["weights"] == second["weights"] and first["tokenizer"] == second["tokenizer"]
    assert all(n.is_due for own in needs for n in own)


def test_a_text_that_changed_is_not_taken_for_the_one_that_was_run(run, cell, tmp_path, text_file):
    text = tmp_path / "own.txt"
    text.write_text(text_file.read_text())
    run("quant=awq", f"calibration.domain={text}")
    cache = StageCache(tmp_path / "cache")
    experiment = cell("quant=awq", f"calibration.domain={text}")
    assert all(need.exists for need in look_up(experiment, cache, made=()))
    text.write_text(text.read_text() + "\n\nOne more text.")
    there = {n.kind for n in look_up(experiment, cache, made=()) if n.exists}
    assert there == {"weights", "tokenizer"}


@pytest.fixture
def estimator(compose):
    def make(records):
        section = compose("model=tiny-llama").model
        return Estimator(records, "tiny-llama", shape_of(section.random), CPU)

    return make


def observed(record, entry, title, seconds, n_bytes=1000):
    use = {"entry": f"{entry}/x", "title": title, "cached": False}
    use |= {"seconds": seconds, "n_bytes": n_bytes}
    return dataclasses.replace(record, seconds=seconds + 1, extra={"stage_keys": [use]})


@pytest.fixture
def record(ran):
    return ran("quant=rtn", SCORED, "limit=2").record


def test_an_estimate_is_the_median_of_records_scaled_to_the_work(estimator, record, cell):
    records = [observed(record, "perplexity", "wikitext2-64", s) for s in (1.0, 2.0, 90.0)]
    known = estimator(records)
    config = cell("quant=rtn", SCORED, "limit=8").model_dump(mode="json")
    assert known.stage("perplexity", "wikitext2-64", config).seconds == pytest.approx(8.0)
    assert known.stage("perplexity", "another-64", config).seconds == pytest.approx(8.0)
    assert known.n_records == 3 and known.overhead_seconds(computes=True) == pytest.approx(1.0)


def test_a_record_tells_of_other_methods_and_settings_by_their_operations(estimator, ran, cell):
    """GPTQ's stage was once thought to take what AWQ's did, and 1,000 steps what 10 did."""
    methods = ("rtn", "awq", "gptq", "gptaq", "faq-plus", "lrquant")
    by_shape = estimator([])

    def seconds(known, method, *overrides):
        config = cell(f"quant={method}", *overrides).model_dump(mode="json")
        return known.stage("quantized", method, config).seconds

    for method in methods:
        record = observed(ran(f"quant={method}").record, "quantized", method, 10.0)
        assert seconds(estimator([record]), method) == pytest.approx(10.0)
    awq = estimator([observed(ran("quant=awq").record, "quantized", "awq", 10.0)])
    order = sorted(methods, key=lambda m: seconds(by_shape, m))
    assert sorted(methods, key=lambda m: seconds(awq, m)) == order
    many = "calibration.n_samples=4096"
    assert seconds(awq, "gptaq", many) > 10 * seconds(awq, "gptaq", "calibration.n_samples=8")
    steps = [seconds(awq, "lrquant", f"quant.refinement.steps={n}") for n in (1_000, 10_000)]
    assert steps[1] == pytest.approx(10 * steps[0], rel=0.1)


def test_a_record_tells_of_longer_windows_and_of_other_tasks(estimator, record, cell):
    config = cell("quant=rtn", SCORED, "limit=2").model_dump(mode="json")
    windows = estimator([observed(record, "perplexity", "wikitext2-64", 2.0)])
    assert windows.stage("perplexity", "wikitext2-256", config).seconds == pytest.approx(8.0)
    tasks = estimator([observed(record, "tasks", "arc_challenge_validation", 6.0)])
    assert tasks.stage("tasks", "boolq_validation", config).seconds == pytest.approx(16.0)


def test_a_quantized_model_is_thought_as_large_as_its_bits_say(estimator, ran, cell):
    known = estimator([observed(ran("quant=rtn", "bits=4").record, "quantized", "rtn", 1.0)])
    sizes = [
        known.stage("quantized", "awq", cell("quant=awq", f"bits={b}").model_dump(mode="json")).n_bytes
        for b in (2, 4, 8)
    ]
    assert sizes == pytest.approx([500, 1000, 2000])


def test_a_cell_of_cached_stages_is_not_thought_to_load_a_model(estimator, record):
    loaded = observed(record, "perplexity", "wikitext2-64", 2.0)
    cached = {**loaded.extra["stage_keys"][0], "cached": True}
    read = dataclasses.replace(loaded, seconds=2.01, extra={"stage_keys": [cached]})
    known = estimator([loaded, read])
    assert known.overhead_seconds(computes=True) == pytest.approx(1.0)
    assert known.overhead_seconds(computes=False) == pytest.approx(0.01)


def test_the_first_cell_that_computes_anything_pays_for_starting(plan, run, monkeypatch, tmp_path):
    run("quant=rtn", SCORED, "limit=2", "bits=3")
    shutil.rmtree(tmp_path / "runs")  # its stages are in the cache
    monkeypatch.setattr(Estimator, "start_seconds", lambda _, has_tasks: 1000.0)
    cached, new, last = plan(*(["quant=rtn", SCORED, "limit=2", f"bits={b}"] for b in (3, 4, 5))).cells
    assert cached.status == "new" and cached.n_due == 0
    assert cached.seconds < 1000 <= new.seconds and last.seconds < 1000


def test_records_of_this_hardware_are_preferred(estimator, record, cell):
    config = cell("quant=rtn", SCORED, "limit=2").model_dump(mode="json")
    here = observed(record, "perplexity", "wikitext2-64", 2.0)
    there = dataclasses.replace(here, environment={"device_name": "other"}, seconds=9.0)
    there = observed(there, "perplexity", "wikitext2-64", 8.0)
    assert estimator([here, there]).stage("perplexity", "a-64", config).seconds == pytest.approx(2.0)
    assert estimator([there]).stage("perplexity", "a-64", config).seconds == pytest.approx(8.0)


def test_other_models_and_failed_runs_teach_nothing(estimator, record):
    other = dataclasses.replace(record, config={**record.config, "model": {"name": "other"}})
    failed = dataclasses.replace(record, status="failed", error="no")
    assert estimator([other, failed]).n_records == 0


def test_without_records_costs_grow_with_the_work_and_the_method(estimator, cell, monkeypatch):
    machine = rate.MachineRate(
        block_seconds=1e-5,
        exact_block_seconds=1e-5,
        head_seconds=1e-5,
        operations_per_second=1e10,
        hash_seconds=1e-9,
        python_seconds=1e-2,
    )
    name = "faqbench.pipeline.planning.estimates.measure_rate"
    monkeypatch.setattr(name, lambda *_: machine)  # a busy machine's would be chance
    known = estimator([])

    def seconds(kind, *overrides):
        return known.stage(kind, "", cell(*overrides).model_dump(mode="json")).seconds

    assert 0 < seconds("quantized", "quant=rtn") < seconds("quantized", "quant=awq")
    assert seconds("quantized", "quant=gptq") < seconds("quantized", "quant=qep-gptq")
    learned = [seconds("quantized", "quant=lrquant", f"quant.refinement.steps={n}") for n in (9, 90)]
    assert seconds("quantized", "quant=rtn") < learned[0] < learned[1] / 2
    few, many = "calibration.n_samples=2", "calibration.n_samples=4"
    assert 2 * seconds("statistics", few) == pytest.approx(seconds("statistics", many), rel=1e-6)
    assert known.peak_memory_bytes(cell("quant=awq").model_dump(mode="json")) > 10**8


def test_a_record_tells_how_far_off_its_plan_was(record):
    estimate = {"seconds": record.seconds * 2, "peak_memory_bytes": 1, "n_bytes": 0.0}
    found = compare_with_plan(estimate, record, [])
    assert found["error"]["seconds"] == pytest.approx(1.0, abs=0.01)
    assert found["error"]["n_bytes"] is None
    planned = dataclasses.replace(record, extra={"plan": found})
    assert total_error([planned, record]) == (estimate["seconds"], record.seconds)
    assert total_error([record]) is None


def estimate_of(seconds, **stages):
    return {"seconds": seconds, "stages": stages}


def test_what_is_left_follows_what_the_same_kind_of_stage_took_before(record):
    estimates = {name: estimate_of(11.0, perplexity=10.0) for name in "bc"}
    estimates[record.run_id] = estimate_of(11.0, perplexity=10.0)
    # Twice the estimate in its stage, and as planned beside it.
    done = observed(record, "perplexity", "wikitext2-64", 20.0)
    assert seconds_left(estimates, [done]) == pytest.approx(2 * (20.0 + 1.0))
    assert seconds_left(estimates, [done], n_workers=2) == pytest.approx(20.0 + 1.0)
    assert seconds_left(estimates, []) == pytest.approx(33.0)


def test_a_kind_of_stage_that_none_has_run_is_as_far_off_as_the_others(record):
    estimates = {"b": estimate_of(10.0, quantized=10.0)}
    estimates[record.run_id] = estimate_of(11.0, perplexity=10.0)
    done = observed(record, "perplexity", "wikitext2-64", 32.0)
    assert seconds_left(estimates, [done]) == pytest.approx(30.0)


def test_a_product_that_is_too_large_is_timed_in_part(compose, monkeypatch):
    shape = shape_of(compose("model=tiny-llama").model.random)
    monkeypatch.setattr(rate, "_seconds", lambda work, device: work() is None or 1.0)
    whole = rate.measure_rate(shape, CPU, torch.bfloat16)
    monkeypatch.setattr(rate, "_LARGEST", shape.hidden_size * shape.vocab_size // 4)
    part = rate.measure_rate(shape, CPU, torch.bfloat16)
    assert part.head_seconds == pytest.approx(whole.head_seconds + 3 / 128, rel=0.05)


def test_timing_the_machine_for_a_large_model_takes_seconds():
    config = {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "vocab_size": 128256,
    }
    shape = shape_of({**config, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128})
    with FlopCounterMode(display=False) as counter:
        rate.measure_rate(shape, torch.device("meta"), torch.float32)
    assert counter.get_total_flops() < 2e11


def test_a_run_keeps_the_estimate_that_it_was_given(cell, tmp_path):
    from faqbench import pipeline

    estimate = {"seconds": 3.0, "peak_memory_bytes": 10**9, "n_bytes": 10**6}
    data = pipeline.run(
        cell("quant=rtn"), cache=StageCache(tmp_path / "cache"), progress=PlainProgress(), estimate=estimate
    )
    assert data.record.extra["plan"]["estimate"] == estimate
    (again,), _ = find_runs(tmp_path / "runs")
    assert again.extra["plan"]["actual"]["seconds"] == data.record.seconds


def test_a_plan_of_two_hundred_cells_shares_one_composition(tmp_path):
    arguments = ["-m", "model=tiny-llama", "quant=rtn,awq,faq,gptq", "bits=2,3,4,5,8",
                 "seed=range(0,10)", "tracking=none", f"paths.runs={tmp_path}"]  # fmt: skip
    experiments = compose_cells(parse_flags(arguments)).experiments
    with StageCache(tmp_path / "cache") as cache:
        found = make_plan(experiments, [], cache)
    assert len(experiments) == 200 and len(found.cells) == 155  # RTN has no seed
    assert {s.n_cells for s in stages(found, "statistics")} == {10}


def test_a_plan_reads_whole_the_latest_records_of_its_models_and_no_others(run, tmp_path, monkeypatch):
    run("quant=rtn", SCORED)
    (record,), _ = find_runs(tmp_path / "runs")
    data = read_run(tmp_path / "runs" / record.run_id)
    for day in range(1, 6):
        changed = dataclasses.replace(record, run_id=f"toy-{day}", started=f"2024-01-0{day}")
        write_run(tmp_path / "runs", dataclasses.replace(data, record=changed), "")
    other = dataclasses.replace(record, run_id="other", config=record.config | {"model": {"name": "other"}})
    write_run(tmp_path / "runs", dataclasses.replace(data, record=other), "")
    monkeypatch.setattr("faqbench.pipeline.planning.plan._LATEST", 2)
    records, _ = earlier_records(tmp_path / "runs", {"tiny-llama"})
    assert len(records) == 7
    assert {r.run_id for r in records if "stage_keys" in r.extra} == {record.run_id, "toy-5"}


SIZE = 200 * 2**20


def touch() -> None:
    np.ones(SIZE, dtype=np.uint8).sum()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_sections_peak_is_its_own_and_the_runs_is_kept():
    memory = PeakMemory(torch.device("cpu"))
    touch()
    before = memory.bytes
    with memory.section() as quiet:
        pass
    with memory.section() as loud:
        touch()
    assert quiet.bytes < before - SIZE // 2
    assert loud.bytes > quiet.bytes + SIZE // 2
    assert memory.bytes >= max(before, loud.bytes)
