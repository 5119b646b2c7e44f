import dataclasses

import numpy as np
import pandas as pd
import pytest

from faqbench.config import UserError
from faqbench.records import compact_run, read_record, read_run, write_compact_run, write_run


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
    folder = write_compact_run(tmp_path, whole)
    found = read_run(folder).tokens
    for name, values in whole.tokens.items():
        expected = values.mean(axis=1, dtype=np.float64)[:, None]
        np.testing.assert_array_equal(found[name], expected)
        np.testing.assert_array_equal(found[name].mean(axis=1, dtype=np.float64)[:, None], expected)


def test_a_compact_run_reads_like_any_other(whole, tmp_path):
    small, full = read_run(write_compact_run(tmp_path / "c", whole)), whole
    assert small.record.metrics == full.record.metrics
    assert small.record.extra == {"blocks": [{"block": 0}]}
    pd.testing.assert_frame_equal(small.items, full.items)
    pd.testing.assert_series_equal(small.layers["block"], full.layers["block"])
    np.testing.assert_allclose(small.layers["relative_error"], full.layers["relative_error"], 1e-6)


def test_compacting_twice_changes_no_byte(whole, tmp_path):
    once = write_compact_run(tmp_path / "a", whole)
    twice = write_compact_run(tmp_path / "b", read_run(once))
    assert {p.name: p.read_bytes() for p in once.iterdir()} == {
        p.name: p.read_bytes() for p in twice.iterdir()
    }


def test_a_compact_run_is_a_fraction_of_the_whole_one(whole, tmp_path):
    def size(folder):
        return sum(path.stat().st_size for path in folder.iterdir())

    small = size(write_compact_run(tmp_path / "c", whole))
    assert small < 10_000 and small < size(write_run(tmp_path / "w", whole, "a: 1\n")) / 10


def test_a_baseline_without_layers_or_tokens_is_compact_already(data, tmp_path):
    plain = dataclasses.replace(data(), tokens={}, layers=pd.DataFrame())
    folder = write_compact_run(tmp_path, plain)
    assert read_record(folder) == plain.record
    assert len(compact_run(plain).layers) == 0


def test_a_whole_run_is_never_replaced_by_a_compact_one(whole, tmp_path):
    folder = write_run(tmp_path, whole, "a: 1\n")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UserError, match=r"holds config\.yaml, which no compact run does"):
        write_compact_run(tmp_path, whole)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
