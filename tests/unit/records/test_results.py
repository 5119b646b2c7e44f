"""What counts as the result of a run, and what only tells how it went."""

import dataclasses

import numpy as np
import pytest

from faqbench.records import Gate, StageTiming, differences, result_of

PASSED = Gate(name="finite", passed=True, detail="all metrics are finite")


@pytest.mark.parametrize(
    "course",
    [
        {"environment": {"python": "3.13"}},
        {"stages": {"load": StageTiming(seconds=99.0, cached=True)}},
        {"peak_memory_bytes": 1},
        {"started": "2031-01-01T00:00:00+00:00"},
        {"seconds": 1.0},
        {"gates": (PASSED, Gate(name="not_worse_than_rtn", passed=False, detail="than toy"))},
        {"extra": {"evaluation": {"wikitext2-512": {"n_windows": 2, "seconds": 9.0}}, "plan": {}}},
        {"config": {"model": {"name": "toy"}, "quant": {"skip": []}, "paths": {"runs": "x"}}},
    ],
)
def test_how_a_run_went_is_no_result(record, data, course):
    assert result_of(record(**course)) == result_of(record())
    assert differences(data(**course), data()) == []


@pytest.mark.parametrize(
    ("result", "named"),
    [
        ({"status": "failed"}, "status"),
        ({"fingerprints": {"weights": "cd"}}, "fingerprints.weights"),
        ({"bits_per_weight": 3.0}, "bits_per_weight"),
        ({"gates": (Gate(name="finite", passed=False, detail="no"),)}, "gates"),
        ({"warnings": ()}, "warnings"),
        ({"config": {"model": {"name": "toy"}, "quant": {"skip": ["x"]}}}, "config.quant"),
        ({"extra": {"evaluation": {"wikitext2-512": {"n_windows": 3}}}}, "extra.evaluation"),
    ],
)
def test_what_a_run_found_is(record, data, result, named):
    assert result_of(record(**result)) != result_of(record())
    assert differences(data(**result), data()) == [named]


def test_tables_and_tokens_are_compared_bit_for_bit_and_seconds_are_not(data):
    one, other = data(), data()
    layers = other.layers.assign(alpha=0.5, seconds=1.0)
    tokens = {"wikitext2-512": np.nextafter(other.tokens["wikitext2-512"], np.float32(9999))}
    other = dataclasses.replace(other, layers=layers, tokens=tokens)
    assert differences(one, other) == ["layers.alpha", "tokens.wikitext2-512"]


def test_a_table_that_is_missing_differs(data):
    other = dataclasses.replace(data(), items=data().items.drop(columns="value"), tokens={})
    assert differences(data(), other) == ["items.value", "tokens.wikitext2-512"]


def test_nan_equals_nan(data):
    assert differences(data(), data()) == []
    assert data().layers["alpha"].isna().all()
