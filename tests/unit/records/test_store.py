"""Runs as files: written, read, replaced, and packed small enough to commit."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from faqbench.config import UserError
from faqbench.records import (
    Metric,
    RunRecord,
    clear_sweep,
    compact_run,
    find_runs,
    is_packed,
    note_cell,
    read_items,
    read_record,
    read_run,
    read_sweep,
    run_folders,
    stop_sweep,
    write_pack,
    write_run,
    write_sweep,
)


def test_a_run_is_read_as_it_was_written(tmp_path, data):
    original = data()
    found = read_run(write_run(tmp_path, original, "bits: 3\n"))
    assert found.record == original.record
    pd.testing.assert_frame_equal(found.items, original.items)
    pd.testing.assert_frame_equal(found.layers, original.layers)
    np.testing.assert_array_equal(found.tokens["wikitext2-512"], original.tokens["wikitext2-512"])


def test_a_run_folder_holds_the_five_files_of_the_contract(tmp_path, data):
    folder = write_run(tmp_path, data(), "bits: 3\n")
    names = ["config.yaml", "items.parquet", "layers.parquet", "record.json", "tokens.npz"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert (folder / "config.yaml").read_text() == "bits: 3\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_cannot_hold_are_null(tmp_path, data, value):
    metric = Metric(
        task="t", name="perplexity", value=value, stderr=value, n=1, unit="perplexity",
        higher_is_better=False,
    )  # fmt: skip
    folder = write_run(tmp_path, data(metrics=(metric,), extra={"deep": [{"x": value}]}), "")
    raw = json.loads((folder / "record.json").read_text())
    assert raw["metrics"][0]["value"] is None and raw["metrics"][0]["stderr"] is None
    assert read_record(folder).extra == {"deep": [{"x": None}]}


def test_writing_again_replaces_the_run(tmp_path, data):
    write_run(tmp_path, data(status="failed", error="no"), "")
    folder = write_run(tmp_path, data(), "")
    assert read_record(folder).status == "finished"
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_a_table_that_was_not_kept_reads_as_empty(tmp_path, data):
    folder = write_run(tmp_path, data(), "")
    for name in ("items.parquet", "layers.parquet", "tokens.npz"):
        (folder / name).unlink()
    found = read_run(folder)
    assert found.items.empty and found.layers.empty and not found.tokens


def test_runs_are_found_in_the_order_of_their_ids(tmp_path, data):
    for run_id in ("b", "a", "c"):
        write_run(tmp_path, data(run_id=run_id), "")
    records, damaged = find_runs(tmp_path)
    assert ([r.run_id for r in records], damaged) == (["a", "b", "c"], [])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"text"', '{"schema_version": 2}', '{"schema_version": 1}', "\xff"]
)
def test_damaged_records_are_listed_with_a_reason_and_hide_no_other(tmp_path, data, text):
    write_run(tmp_path, data(run_id="good"), "")
    broken = write_run(tmp_path, data(run_id="broken"), "")
    (broken / "record.json").write_bytes(text.encode("latin-1"))
    records, damaged = find_runs(tmp_path)
    assert [r.run_id for r in records] == ["good"]
    assert [name for name, _ in damaged] == ["broken"] and damaged[0][1]


def test_a_newer_schema_is_refused_with_a_sentence(tmp_path, data):
    folder = write_run(tmp_path, data(), "")
    raw = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(raw | {"schema_version": 2}))
    with pytest.raises(ValueError, match="schema_version 2 is not 1, the one that this faqbench"):
        read_record(folder)


def test_a_folder_without_a_record_is_not_a_run(tmp_path):
    (tmp_path / "something").mkdir()
    assert find_runs(tmp_path) == find_runs(tmp_path / "none") == ([], [])


def test_what_a_killed_writer_left_behind_is_not_a_run(tmp_path, data):
    folder = write_run(tmp_path, data(), "")
    folder.rename(tmp_path / f".{folder.name}.x1y2z3")
    assert find_runs(tmp_path) == ([], [])


def test_runs_that_cannot_be_written_are_one_sentence(tmp_path, data):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"Could not write the record at .* set paths\.runs"):
        write_run(tmp_path / "runs", data(), "")


def test_a_sweep_remembers_its_runs_in_order(tmp_path):
    write_sweep(tmp_path, "study", ["b", "a"])
    assert read_sweep(tmp_path, "study") == ["b", "a"]
    assert read_sweep(tmp_path, "other") is None
    assert find_runs(tmp_path) == ([], [])


def test_a_renamed_run_is_called_as_its_folder_is_and_says_so(tmp_path, data):
    folder = write_run(tmp_path, data(run_id="first"), "")
    folder.rename(tmp_path / "second")
    ((record,), damaged) = find_runs(tmp_path)
    assert record.run_id == "second" and "its record is that of first" in record.warnings[0]
    assert read_run(tmp_path / "second").record == record and not damaged


def test_a_copy_beside_its_original_counts_once(tmp_path, data):
    folder = write_run(tmp_path, data(run_id="first"), "")
    shutil.copytree(folder, tmp_path / "second")
    records, damaged = find_runs(tmp_path)
    assert [r.run_id for r in records] == ["first"]
    assert damaged == [("second", "it is a copy of first, which is here too")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokens.npz", {"wikitext2-512": np.zeros(3)}),
        ("tokens.npz", {"wikitext2-512": np.array([["a"]])}),
        ("tokens.npz", {"wikitext2-512": np.array([[{}]])}),
        ("items.parquet", {"task": ["a"], "item": [0], "metric": ["acc"]}),
        ("items.parquet", {"task": ["a"], "item": ["b"], "metric": ["acc"], "value": [1.0]}),
        ("layers.parquet", {"block": ["one"]}),
        ("layers.parquet", {"role": [[1, 2]]}),
    ],
)
def test_a_table_of_other_things_is_damaged(tmp_path, data, name, content):
    folder = write_run(tmp_path, data(), "")
    if name == "tokens.npz":
        np.savez(folder / name, **content)
    else:
        pd.DataFrame(content).to_parquet(folder / name)
    with pytest.raises(ValueError, match=name):
        read_run(folder)


def test_a_table_that_is_a_pipe_is_damaged_and_waited_for_by_nobody(tmp_path, data):
    folder = write_run(tmp_path, data(), "")
    (folder / "items.parquet").unlink()
    os.mkfifo(folder / "items.parquet")
    with pytest.raises(ValueError, match="is no regular file"):
        read_run(folder)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"run_ids": 5}', '{"run_ids": [5]}', '{"run_ids": ["../x"]}', '{"name": "s"}'],
)
def test_a_torn_list_of_a_sweep_is_one_sentence_and_not_all_runs(tmp_path, content):
    write_sweep(tmp_path, "study", ["a"])
    (tmp_path / "_sweeps" / "study.json").write_text(content)
    with pytest.raises(UserError, match="list of the sweep study"):
        read_sweep(tmp_path, "study")
    write_sweep(tmp_path, "study", ["b"])
    assert read_sweep(tmp_path, "study") == ["b"]


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "x" * 300])
def test_a_sweeps_name_is_never_a_path(tmp_path, name):
    assert read_sweep(tmp_path, name) is None
    for use in (stop_sweep, clear_sweep, lambda *a: write_sweep(*a, []), lambda *a: note_cell(*a, "b")):
        with pytest.raises(UserError, match="cannot name a sweep"):
            use(tmp_path / "runs", name)
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_moves_another_one_of_its_folders_name_out_of_the_way(tmp_path, data):
    write_run(tmp_path, data(run_id="first"), "").rename(tmp_path / "second")
    write_run(tmp_path, data(run_id="second"), "")
    assert [r.run_id for r in find_runs(tmp_path)[0]] == ["first-moved-1", "second"]


def test_a_run_folder_on_another_disk_is_read(tmp_path, data):
    write_run(tmp_path / "big", data(run_id="first"), "")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(tmp_path / "big" / "first")
    assert [r.run_id for r in find_runs(tmp_path / "runs")[0]] == ["first"]


def test_a_record_that_is_a_link_out_of_its_folder_is_not_read(tmp_path, data):
    folder = write_run(tmp_path / "runs", data(), "")
    (folder / "record.json").rename(tmp_path / "outside.json")
    (folder / "record.json").symlink_to(tmp_path / "outside.json")
    ((_, reason),) = find_runs(tmp_path / "runs")[1]
    assert reason == "record.json is a link"


def test_a_record_survives_json(record):
    original = record()
    assert RunRecord.from_json(json.loads(json.dumps(original.to_json()))) == original


@pytest.mark.parametrize("version", [2, 99, 0, "1", None])
def test_another_schema_is_refused_with_both_versions(record, version):
    raw = record().to_json() | {"schema_version": version}
    with pytest.raises(ValueError, match=rf"schema_version {version!r} is not 1, the one that"):
        RunRecord.from_json(raw)


def test_keys_added_by_a_later_writer_are_kept(record):
    raw = record().to_json() | {"carbon_grams": 3}
    assert RunRecord.from_json(raw).extra["carbon_grams"] == 3


@pytest.mark.parametrize("missing", ["stages", "metrics", "run_id", "peak_memory_bytes"])
def test_a_record_that_lacks_a_key_is_malformed(record, missing):
    raw = record().to_json()
    del raw[missing]
    with pytest.raises(ValueError, match="malformed record"):
        RunRecord.from_json(raw)


@pytest.mark.parametrize("metrics", [[1], [{"task": "x"}], "text", None])
def test_metrics_of_another_shape_are_malformed(record, metrics):
    raw = record().to_json() | {"metrics": metrics}
    with pytest.raises(ValueError, match="malformed record"):
        RunRecord.from_json(raw)


def test_a_metric_is_found_by_task_and_name(record):
    assert record().metric("wikitext2-512", "perplexity").value == 29.19
    assert record().metric("wikitext2-512", "acc") is None


def test_a_configuration_that_no_experiment_had_is_malformed(record):
    raw = record().to_json()
    raw["config"] |= {"quant": {"scale": "awq", "round": "nearest"}, "calibration": {"domain": {"wiki": 1}}}
    with pytest.raises(ValueError, match="malformed record: config is that of no experiment"):
        RunRecord.from_json(raw)


def packed(runs, *whole):
    """Pack runs and return the folder that the first of them does not have."""
    write_pack(runs, whole)
    return runs / whole[0].record.run_id


@pytest.fixture
def whole(data):
    """A run with scores of several kinds and enough linears to weigh something."""
    rng = np.random.default_rng(0)
    n = 210
    return dataclasses.replace(
        data(extra={"stage_keys": [1] * 100, "blocks": [{"block": 0}]}),
        tokens={
            "wiki-512": rng.normal(3, 1, (40, 511)).astype(np.float32),
            "wiki-512.kl": rng.random((40, 511), dtype=np.float32),
            "wiki-512.agrees": rng.integers(0, 2, (40, 511), dtype=np.uint8),
        },
        layers=pd.DataFrame(
            {
                "block": np.arange(n) // 7,
                "role": ["qkv"] * n,
                "linear": [f"linear_{i % 7}" for i in range(n)],
                "relative_error": rng.random(n),
                "condition": [None] * n,
            }
        ),
    )


def test_window_means_stand_in_for_tokens_and_pair_as_they_did(whole, tmp_path):
    folder = packed(tmp_path, whole)
    found = read_run(folder).tokens
    for name, values in whole.tokens.items():
        expected = values.mean(axis=1, dtype=np.float64)[:, None]
        np.testing.assert_array_equal(found[name], expected)
        np.testing.assert_array_equal(found[name].mean(axis=1, dtype=np.float64)[:, None], expected)


def test_a_compact_run_reads_like_any_other(whole, tmp_path):
    small, full = read_run(packed(tmp_path / "c", whole)), whole
    assert small.record.metrics == full.record.metrics
    assert small.record.extra == {"blocks": [{"block": 0}]}
    pd.testing.assert_frame_equal(small.items, full.items)
    pd.testing.assert_series_equal(small.layers["block"], full.layers["block"])
    np.testing.assert_allclose(small.layers["relative_error"], full.layers["relative_error"], 1e-6)


def test_compacting_twice_changes_no_byte(whole, tmp_path):
    once = packed(tmp_path / "a", whole)
    packed(tmp_path / "b", read_run(once))
    first, second = (contents(tmp_path / name / "_pack") for name in "ab")
    assert first == second and len(first) == 4


def test_a_compact_run_does_not_tell_where_its_machine_kept_runs(whole, tmp_path):
    places = {"runs": "/home/ann/runs", "reports": "out/reports"}
    config = {**whole.record.config, "paths": places}
    there = dataclasses.replace(whole, record=dataclasses.replace(whole.record, config=config))
    found = read_run(packed(tmp_path / "c", there)).record.config["paths"]
    assert found == {"runs": "runs", "reports": "out/reports"}


def test_a_packed_run_is_a_fraction_of_the_whole_one(whole, tmp_path):
    small = sum(map(len, contents(packed(tmp_path / "c", whole).parent / "_pack").values()))
    assert small < 10_000
    assert small < sum(map(len, contents(write_run(tmp_path / "w", whole, "a: 1\n")).values())) / 10


def test_a_baseline_without_layers_or_tokens_is_compact_already(data, tmp_path):
    plain = dataclasses.replace(data(), tokens={}, layers=pd.DataFrame())
    assert read_record(packed(tmp_path, plain)) == plain.record
    assert len(compact_run(plain).layers) == 0


def test_runs_are_added_to_a_pack_and_equal_ids_replaced(whole, tmp_path):
    other = renamed(whole, "other")
    write_pack(tmp_path, [whole])
    write_pack(tmp_path, [other])
    changed = dataclasses.replace(whole, items=whole.items.iloc[:0])
    write_pack(tmp_path, [changed])
    records, damaged = find_runs(tmp_path)
    assert [r.run_id for r in records] == sorted(["other", whole.record.run_id]) and not damaged
    assert not len(read_items(tmp_path / whole.record.run_id))
    pd.testing.assert_frame_equal(read_items(tmp_path / "other"), whole.items)


def test_a_folder_comes_before_what_a_pack_holds_of_its_name(whole, tmp_path):
    folder = packed(tmp_path, dataclasses.replace(whole, items=whole.items.iloc[:0]))
    assert is_packed(folder) and not len(read_items(folder))
    write_run(tmp_path, whole, "a: 1\n")
    assert not is_packed(folder) and len(read_items(folder)) == len(whole.items)
    assert run_folders(tmp_path) == [folder]


def test_a_damaged_line_is_one_bad_run_and_a_damaged_table_is_said_of_each(whole, tmp_path):
    write_pack(tmp_path, [renamed(whole, f"run-{i}") for i in range(3)])
    records = tmp_path / "_pack" / "records.jsonl"
    lines = records.read_text().splitlines()
    records.write_text("\n".join([lines[0], "{", '{"run_id": "../x"}', lines[0], lines[2]]) + "\n")
    found, damaged = find_runs(tmp_path)
    assert [r.run_id for r in found] == ["run-0", "run-2"]
    assert [name for name, _ in damaged] == ["pack-line-2", "pack-line-3", "pack-line-4"]
    assert "line 3 of records.jsonl has no id of its own" in damaged[1][1]
    (tmp_path / "_pack" / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"items\.parquet cannot be read"):
        read_items(tmp_path / "run-0")


def test_a_pack_with_something_else_in_its_folder_is_left_as_it_is(whole, tmp_path):
    packed(tmp_path, whole)
    (tmp_path / "_pack" / "mine.txt").write_text("mine")
    before = contents(tmp_path / "_pack")
    with pytest.raises(UserError, match=r"holds mine\.txt, which no pack does"):
        write_pack(tmp_path, [renamed(whole, "other")])
    assert contents(tmp_path / "_pack") == before


def renamed(data, name):
    return dataclasses.replace(data, record=dataclasses.replace(data.record, run_id=name))


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}
