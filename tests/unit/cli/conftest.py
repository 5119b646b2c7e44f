"""A folder of toy records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from faqbench.records import SCHEMA_VERSION, Metric, RunData, RunRecord, StageTiming, write_run


@pytest.fixture
def toy_run(tmp_path: Path) -> Callable[..., RunRecord]:
    """Write a toy run below tmp_path/runs and return its record."""

    def make(name: str, value: float | None = 20.0, **changes: Any) -> RunRecord:
        metric = Metric(
            task="wikitext2-64", name="perplexity", value=value, stderr=0.5, n=63,
            unit="perplexity", higher_is_better=False,
        )  # fmt: skip
        record = RunRecord(
            schema_version=SCHEMA_VERSION,
            run_id=name,
            status="finished",
            error=None,
            config={"bits": 3, "quant": {"name": name.split("-")[1], "scale": "none"}},
            environment={},
            fingerprints={},
            stages={"load": StageTiming(seconds=1.5, cached=True)},
            metrics=(metric,),
            bits_per_weight=None,
            checkpoint_bytes=None,
            peak_memory_bytes=2 * 10**9,
            started="2025-01-01T00:00:00+00:00",
        )
        record = dataclasses.replace(record, **changes)
        empty = pd.DataFrame()
        write_run(tmp_path / "runs", RunData(record=record, items=empty, tokens={}, layers=empty), "")
        return record

    return make
