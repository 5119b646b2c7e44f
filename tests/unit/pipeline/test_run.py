"""From an experiment to its folder, and what is found there afterwards, its environment too."""

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
from faqbench.config import UserError, run_id, validate
from faqbench.pipeline.environment import describe_environment, peak_memory_bytes, start_peak_memory
from faqbench.records import differences, find_runs, finished_record, read_record, read_run, write_run
from faqbench.stages import PlainProgress, StageCache
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
