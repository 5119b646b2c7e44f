"""A record with something in every field, and its tables."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from faqbench.records import SCHEMA_VERSION, Gate, Metric, RunData, RunRecord, StageTiming

METRIC = Metric(
    task="wikitext2-512",
    name="perplexity",
    value=29.19,
    stderr=0.5,
    n=1022,
    unit="perplexity",
    higher_is_better=False,
)


@pytest.fixture
def record():
    def make(**changes):
        full = RunRecord(
            schema_version=SCHEMA_VERSION,
            run_id="toy-rtn-w3-g32-0123456789",
            status="finished",
            error=None,
            config={"model": {"name": "toy"}, "quant": {"skip": []}},
            environment={"python": "3.11"},
            fingerprints={"weights": "ab"},
            stages={"load": StageTiming(seconds=1.5, cached=False)},
            metrics=(METRIC,),
            bits_per_weight=3.59375,
            checkpoint_bytes=1000,
            peak_memory_bytes=2**30,
            gates=(Gate(name="finite", passed=True, detail="all metrics are finite"),),
            warnings=("a warning",),
            skipped_scales=("v -> o",),
            started="2025-01-01T00:00:00+00:00",
            seconds=12.5,
            extra={"evaluation": {"wikitext2-512": {"n_windows": 2}}},
        )
        return dataclasses.replace(full, **changes)

    return make


@pytest.fixture
def data(record):
    def make(**changes):
        return RunData(
            record=record(**changes),
            items=pd.DataFrame({"task": ["arc"], "item": [3], "metric": ["acc"], "value": [1.0]}),
            tokens={"wikitext2-512": np.arange(1022, dtype=np.float32).reshape(2, 511)},
            layers=pd.DataFrame({"block": [0], "linear": ["q_proj"], "alpha": [np.nan]}),
        )

    return make
