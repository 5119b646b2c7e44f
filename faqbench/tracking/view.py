"""What any tracker shows of a run, taken from its record and its neighbours in `runs/`.

One value, so that W&B, trackio and MLflow show the same under the same names:

    summary    eval/<task>/<metric> and ..._stderr, bits_per_weight, seconds, peak_memory_bytes,
               gates/<name>, gates_passed, stages/<name>/seconds, baseline
    curves     over blocks: relative_error, <role>_error, alone_error, added_up_error, cosine
    tables     metrics, linears, comparison (paired with the full precision run, with intervals)
    images     the plots of the report that say something about one run
    files      the record and its tables; and the baseline's, to be linked as this run's input
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from faqbench.records import RunData, RunRecord, read_record, run_folders, same_model
from faqbench.report import run_evidence
from faqbench.tracking.samples import ProgressLog, ProgressSample, read_progress

_FILES = ("record.json", "config.yaml", "items.parquet", "layers.parquet")
_TRACES = {"local_error": "alone_error", "relative_error": "added_up_error", "cosine": "cosine"}


@dataclass(frozen=True, kw_only=True)
class RunHead:
    """What is known of a run before it begins.

    Attributes:
        run_id: its name, and what its id in any service is made from.
        group: the sweep.
        job_type: `baseline` for the full precision model, else `cell`.
        tags: the user's.
        config: the configuration, nested as in `conf/`.
    """

    run_id: str
    group: str | None
    job_type: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Image:
    """A plot: its name, what it shows, and the PNG."""

    name: str
    caption: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class RunView:
    """A run that has ended; see the module's docstring.

    Attributes:
        curves: name -> (block, value) pairs.
        files: name within the run's folder -> path.
        baseline: run id and files of the full precision run of the same folder, or None.
    """

    record: RunRecord
    summary: Mapping[str, Any]
    curves: Mapping[str, tuple[tuple[int, float], ...]]
    tables: Mapping[str, pd.DataFrame]
    images: tuple[Image, ...]
    files: Mapping[str, Path]
    baseline: tuple[str, Mapping[str, Path]] | None


def head_of(run_id: str, config: Mapping[str, Any], group: str | None, tags: tuple[str, ...]) -> RunHead:
    """Return what is known of a run from its configuration."""
    is_baseline = (config.get("quant") or {}).get("round") == "none"
    return RunHead(
        run_id=run_id, group=group, job_type="baseline" if is_baseline else "cell", tags=tags, config=config
    )


def progress_of(runs: Path, run_id: str) -> ProgressLog | None:
    """Return what a run's file of samples says; nothing for a damaged file, which `watch` names."""
    try:
        return read_progress(runs, run_id)
    except ValueError:
        return None


def samples_of(runs: Path, run_id: str) -> tuple[ProgressSample, ...]:
    """Return the live samples that a run left behind."""
    log = progress_of(runs, run_id)
    return log.samples if log else ()


def view_of(data: RunData, runs: Path) -> RunView:
    """Return what is shown of a run that ended, finished or failed."""
    record = data.record
    baseline = find_baseline(runs, record)
    evidence = run_evidence(runs, record, baseline)
    tables = {
        "metrics": pd.DataFrame([vars(metric) for metric in record.metrics]),
        "linears": data.layers,
        "comparison": pd.DataFrame(evidence.comparison),
    }
    return RunView(
        record=record,
        summary=summary(record) | ({"baseline": baseline.run_id} if baseline else {}),
        curves=_curves(data),
        tables={name: table for name, table in tables.items() if len(table)},
        images=tuple(Image(name=n, caption=c, png=p) for n, c, p in evidence.images),
        files=_files(runs / record.run_id),
        baseline=(baseline.run_id, _files(runs / baseline.run_id)) if baseline else None,
    )


def summary(record: RunRecord) -> dict[str, Any]:
    """Return the final numbers under their stable names; what was not measured is left out."""
    numbers: dict[str, Any] = {
        "status": record.status,
        "error": record.error,
        "bits_per_weight": record.bits_per_weight,
        "checkpoint_bytes": record.checkpoint_bytes,
        "seconds": record.seconds,
        "peak_memory_bytes": record.peak_memory_bytes,
        "n_warnings": len(record.warnings),
        "gates_passed": all(gate.passed for gate in record.gates),
    }
    for metric in record.metrics:
        numbers[f"eval/{metric.task}/{metric.name}"] = metric.value
        numbers[f"eval/{metric.task}/{metric.name}_stderr"] = metric.stderr
    numbers |= {f"gates/{gate.name}": gate.passed for gate in record.gates}
    numbers |= {f"stages/{name}/seconds": stage.seconds for name, stage in record.stages.items()}
    return {name: value for name, value in numbers.items() if value is not None}


def find_baseline(runs: Path, record: RunRecord) -> RunRecord | None:
    """Return the full precision run of the same model and dtype that measured most of the same."""
    if record.status != "finished" or record.config.get("quant", {}).get("round") == "none":
        return None
    model = str(record.config.get("model", {}).get("name", ""))
    candidates = []
    for folder in run_folders(runs):
        if not folder.name.startswith(f"{model}-fp-"):
            continue
        try:
            candidate = read_record(folder)
        except ValueError:
            continue
        same_dtype = candidate.config.get("dtype") == record.config.get("dtype")
        if same_model(candidate, record) and same_dtype and candidate.status == "finished":
            candidates.append(candidate)
    shared = [len(set(c.fingerprints.items()) & set(record.fingerprints.items())) for c in candidates]
    best = max(range(len(candidates)), key=lambda i: shared[i], default=None)
    return None if best is None else candidates[best]


def _files(folder: Path) -> dict[str, Path]:
    """Return the files of a run that a service may keep; a link would send what it points to."""
    paths = {name: folder / name for name in _FILES}
    return {name: p for name, p in paths.items() if p.is_file() and not p.is_symlink()}


def _curves(data: RunData) -> dict[str, tuple[tuple[int, float], ...]]:
    curves: dict[str, tuple[tuple[int, float], ...]] = {}
    layers = data.layers
    if {"block", "relative_error"} <= set(layers.columns):
        curves["relative_error"] = _means(layers)
        if "role" in layers.columns:
            for role, rows in layers.groupby("role", sort=True):
                curves[f"{role}_error"] = _means(rows)
    traced = data.record.extra.get("blocks")
    blocks = traced if isinstance(traced, list) else []
    for key, name in _TRACES.items():
        points = [(b["block"], b[key]) for b in blocks if isinstance(b, Mapping) and key in b]
        curves[name] = tuple((int(b), float(x)) for b, x in points if x is not None)
    return {name: curve for name, curve in curves.items() if curve}


def _means(rows: pd.DataFrame) -> tuple[tuple[int, float], ...]:
    means = rows.groupby("block")["relative_error"].mean().dropna().sort_index()
    pairs = zip(means.index.tolist(), means.tolist(), strict=True)
    return tuple((int(block), float(error)) for block, error in pairs)
