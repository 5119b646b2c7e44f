"""The packaged model on WikiText-2: the anchors that an independent prototype gave."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from faqbench.records import find_runs

WIKITEXT2 = Path(__file__).parents[2].resolve().parent / "shared/data/wikitext2-raw-test.txt"
pytestmark = pytest.mark.packaged

# No calibration takes part in these, so nothing but rounding may differ.
ANCHORS = {"fp": 29.19, "rtn": 94.4}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    if not WIKITEXT2.is_file():
        pytest.skip(f"{WIKITEXT2} is not there")
    folder = tmp_path_factory.mktemp("packaged")
    overrides = [
        "-m",
        "quant=fp,rtn",
        "evaluation=wikitext2-512",
        "limit=40",
        "dtype=float32",  # as fast as any on every CPU; the anchors hold up to rounding
        "tracking=none",
        f"data.wikitext2_path={WIKITEXT2}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "faqbench", *overrides],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {r.config["quant"]["name"]: r for r in find_runs(folder / "runs")[0]}


@pytest.mark.parametrize("quant", list(ANCHORS))
def test_perplexity_is_that_of_the_independent_prototype(records, quant):
    found = records[quant].metric("wikitext2-512", "perplexity")
    assert found.value == pytest.approx(ANCHORS[quant], rel=0.005)
    assert found.n == 40 * 511


def test_the_tokens_of_the_protocol_are_verified_and_the_gates_pass(records):
    for record in records.values():
        assert not any("unverified" in warning for warning in record.warnings)
        assert [g for g in record.gates if not g.passed] == []


def test_all_linears_of_all_thirty_blocks_are_quantized(records):
    gate = next(g for g in records["rtn"].gates if g.name == "all_linears_quantized")
    assert gate.detail.startswith("210 of 210")
    assert records["rtn"].bits_per_weight == pytest.approx(3 + (16 + 3) / 64)
