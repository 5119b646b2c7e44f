"""From an experiment to its folder, and what is found there: its environment, and cached weights."""

import dataclasses
import getpass
import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import yaml

from faqbench import hardware, pipeline
from faqbench.cli import main
from faqbench.config import UserError, run_id, validate
from faqbench.models import ModelHolder, loading
from faqbench.pipeline.environment import describe_environment, peak_memory_bytes, start_peak_memory
from faqbench.records import differences, find_runs, finished_record, read_record, read_run, write_run
from faqbench.stages import PlainProgress, StageCache, list_entries
from faqbench.stages.manifest import MANIFEST, read_manifest, write_manifest

SCORED = "evaluation.protocols=[wikitext2-64]"


def test_a_run_returns_what_it_wrote(ran, folder_of):
    data = ran("quant=faq", SCORED)
    assert read_record(folder_of(data)) == data.record
    assert data.record.metric("wikitext2-64", "perplexity").value > 1


def test_the_folders_config_is_the_experiment(cell, run):
    run("quant=rtn", "bits=4")
    experiment = cell("quant=rtn", "bits=4")
    text = (experiment.paths.runs / run_id(experiment) / "config.yaml").read_text()
    assert validate(yaml.safe_load(text)) == experiment


def test_every_linear_has_a_row_of_layers(ran):
    layers = ran("quant=awq").layers
    assert len(layers) == 2 * 7
    assert layers["relative_error"].between(0, 1).all()


def test_the_baseline_quantizes_nothing_and_reads_no_calibration(run):
    record = run("quant=fp", "calibration.domain=/no/such/file.txt").record
    assert record.bits_per_weight is None and record.checkpoint_bytes is None
    assert set(record.stages) == {"load", "evaluate"}


def test_rtn_reads_no_calibration(ran):
    record = ran("quant=rtn", "calibration.domain=/no/such/file.txt").record
    assert "calibration" not in record.fingerprints and record.bits_per_weight > 3


def test_statistics_are_taken_once_for_all_cells_that_share_them(run):
    first, second = run("quant=awq"), run("quant=faq", "bits=4", "gamma=0.5")
    assert not first.record.stages["statistics"].cached
    assert second.record.stages["statistics"].cached


@pytest.mark.parametrize("override", ["seed=1", "calibration.seq_len=16", "calibration.tokens=drop_first"])
def test_other_tokens_need_other_statistics(run, after, override):
    _, cache = after("quant=awq")
    assert not run("quant=awq", override, cache=cache).record.stages["statistics"].cached


def test_scores_are_taken_once_for_equal_weights(run):
    assert not run("quant=rtn", SCORED).record.stages["evaluate"].cached
    assert run("quant=rtn", SCORED, "rerun=true").record.stages["evaluate"].cached
    assert not run("quant=rtn", "bits=4", SCORED).record.stages["evaluate"].cached


def test_no_two_methods_share_their_scores(ran):
    values = {
        quant: ran(f"quant={quant}", SCORED).record.metric("wikitext2-64", "perplexity").value
        for quant in ("fp", "rtn", "awq", "faq", "gptq")
    }
    assert len(set(values.values())) == len(values)


@pytest.mark.parametrize("content", [[], {}, {"fingerprint": 1, "linears": 3, "n_overlapping": "no"}])
def test_an_entry_of_the_cache_with_right_checksums_and_odd_content_is_made_anew(
    run, after, tmp_path, caplog, content
):
    first, cache = after("quant=awq", SCORED)
    shutil.copytree(cache, tmp_path / "cache")
    files = [p for p in (tmp_path / "cache" / "stages").rglob("*.json") if p.name != MANIFEST]
    assert len(files) > 8
    for path in files:
        path.write_text(json.dumps(content))
    for entry in {path.parent for path in files}:
        key = read_manifest(entry)["key"]
        (entry / MANIFEST).unlink()
        write_manifest(entry, key)
    second = run("quant=awq", SCORED, "rerun=true")
    assert differences(first, second) == []
    entries = [[use["entry"] for use in run.record.extra["stage_keys"]] for run in (first, second)]
    assert set(entries[1]) <= set(entries[0]) and len(set(entries[1])) == len(entries[1])
    assert caplog.text.count("is foreign") >= len({path.parent for path in files}) - 1


def test_an_entry_that_there_is_no_memory_to_read_stays(run, tmp_path, monkeypatch, caplog):
    run("quant=rtn", SCORED)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache" / "stages").rglob("*.json")}

    def starved(_):
        raise MemoryError("no room")

    monkeypatch.setattr("faqbench.pipeline.quantizing.read_reports", starved)
    with pytest.raises(MemoryError):
        run("quant=rtn", SCORED, "rerun=true")
    assert {p: p.stat().st_mtime_ns for p in before} == before and "foreign" not in caplog.text


def test_a_run_without_kept_items_has_metrics_and_no_tables(ran):
    data = ran("quant=rtn", SCORED, "evaluation.keep_items=false")
    assert data.record.metrics and not data.tokens and data.items.empty


def test_a_mistake_is_found_before_the_long_stages(run, tmp_path):
    with pytest.raises(UserError, match="matches no linear"):
        run("quant=awq", "quant.skip=[lm_head]")
    assert not (tmp_path / "cache" / "stages" / "statistics").exists()


def test_only_a_finished_record_counts_as_done(cell, run):
    experiment = cell("quant=rtn")
    assert finished_record(experiment) is None
    pipeline.write_failure(experiment, "it broke")
    assert finished_record(experiment) is None
    run("quant=rtn")
    assert finished_record(experiment).status == "finished"
    assert finished_record(cell("quant=rtn", "rerun=true")) is None


def test_a_damaged_record_is_not_done(cell, run):
    run("quant=rtn")
    experiment = cell("quant=rtn")
    (experiment.paths.runs / run_id(experiment) / "record.json").write_text("{")
    assert finished_record(experiment) is None


def test_a_failure_is_a_record_with_its_error(cell):
    experiment = cell("quant=rtn")
    pipeline.write_failure(experiment, "it broke")
    (record,), damaged = find_runs(experiment.paths.runs)
    assert (record.status, record.error, damaged) == ("failed", "it broke", [])
    assert record.run_id == run_id(experiment) and record.metrics == ()


def test_a_run_reads_back_with_its_tables(ran, tmp_path):
    data = ran("quant=awq", SCORED)
    again = write_run(tmp_path / "copy", dataclasses.replace(data, record=data.record), "config: {}\n")
    assert read_run(again).tokens["wikitext2-64"].shape[1] == 63


def test_a_dtype_that_the_machine_emulates_is_said_and_recorded(cell, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(hardware, "_is_emulated", lambda device, dtype: dtype == "bfloat16")
    monkeypatch.setattr(hardware, "_slowdown", lambda device, dtype: 8.0)
    monkeypatch.setattr(PlainProgress, "note", lambda self, text: said.append(text))
    for dtype, n_warnings in (("bfloat16", 1), ("float32", 0)):
        data = pipeline.run(
            cell("quant=rtn", f"dtype={dtype}"),
            cache=StageCache(tmp_path / "cache"),
            progress=PlainProgress(),
        )
        assert data.record.config["dtype"] == dtype
        assert len(data.record.warnings) == n_warnings
        assert all("about 8 times as long" in text for text in data.record.warnings)
    assert len(said) == 1 and said[0].startswith("dtype=bfloat16 is emulated")


CPU = torch.device("cpu")


def test_versions_and_hardware_are_described():
    found = describe_environment(CPU)
    assert found["packages"]["torch"] == torch.__version__
    assert found["n_cores"] >= 1 and found["memory_bytes"] > 2**28


def test_nothing_names_a_host_or_a_home():
    values = [str(v) for v in describe_environment(CPU).values()]
    assert socket.gethostname() not in values and getpass.getuser() not in values
    assert not any(str(Path.home()) in v for v in values)


def test_peak_memory_grows_with_what_is_allocated():
    start_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    block = torch.ones(2**25)
    assert peak_memory_bytes(CPU) > before > 2**20
    assert block.sum() == 2**25


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
