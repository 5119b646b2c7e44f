import dataclasses

import numpy as np
import pandas as pd
import pytest

from faqbench.config import UserError
from faqbench.records import (
    compact_run,
    find_runs,
    is_packed,
    read_items,
    read_record,
    read_run,
    run_folders,
    write_pack,
    write_run,
)


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
