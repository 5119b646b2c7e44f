"""Calibrate, quantize, evaluate, record: one straight line, with no branch on a method's name."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime

import torch
import yaml

from faqbench.calibration import calibration_tokens
from faqbench.config import Experiment, run_id
from faqbench.models import cast_parameters, load_model, resolve_device
from faqbench.pipeline.environment import describe_environment
from faqbench.pipeline.evaluating import Evaluated, evaluate
from faqbench.pipeline.gates import check_gates
from faqbench.pipeline.memory import PeakMemory
from faqbench.pipeline.reference import reference_scores
from faqbench.pipeline.statistics import activation_store
from faqbench.pipeline.timing import Timings
from faqbench.quantization import (
    Calibration,
    QuantizedModel,
    assign_grids,
    quantize_model,
    reads_store,
)
from faqbench.records import SCHEMA_VERSION, RunData, RunRecord, read_record, write_run
from faqbench.stages import Progress, StageCache


def run(experiment: Experiment, *, cache: StageCache, progress: Progress) -> RunData:
    """Run one cell and write its folder.

    Args:
        experiment: what to run.
        cache: where finished stages are kept and found.
        progress: told of every stage.

    Returns:
        The record with its tables, as written to `paths.runs`.

    Raises:
        UserError: for anything that the user can mend.
    """
    timings, device = Timings(), resolve_device(experiment.device)
    memory = PeakMemory(device)
    with timings.stage("load"):
        working_dtype = getattr(torch, experiment.calibration.dtype)
        loaded = load_model(experiment.model, working_dtype, device, progress)
    fingerprints = {"weights": loaded.fingerprint}
    # Before the long stages, since it finds the user's mistakes.
    grids = assign_grids(loaded.model, loaded.architecture, experiment.quant)

    store = calibration = None
    if experiment.needs_calibration:
        with timings.stage("calibrate"):
            drawn = calibration_tokens(experiment, loaded.tokenizer, progress)
        fingerprints["calibration"] = drawn.fingerprint
        calibration = Calibration(
            tokens=drawn.tokens,
            batch_size=experiment.calibration.batch_size,
            select=experiment.calibration.tokens,
        )
        if reads_store(experiment.quant):
            with timings.stage("statistics") as stage:
                store, stage.cached = activation_store(experiment, loaded, drawn, cache, progress)

    references = {}
    if experiment.needs_reference:  # before the weights are replaced
        with timings.stage("reference") as stage:
            references = reference_scores(experiment, loaded, memory, cache, progress)
            stage.cached = all(r.entry.cached for r in references.values())

    quantized = None
    if experiment.quantizes:
        with timings.stage("quantize"):
            quantized = quantize_model(
                loaded, experiment.quant, grids, store, calibration, progress
            )

    cast_parameters(loaded.model, getattr(torch, experiment.dtype))
    with timings.stage("evaluate") as stage:
        evaluated = evaluate(experiment, loaded, fingerprints, references, memory, cache, progress)
        stage.cached = evaluated.cached

    data = _record(experiment, fingerprints, quantized, evaluated, timings, memory)
    data = dataclasses.replace(data, record=check_gates(data.record, loaded, quantized))
    write_run(experiment.paths.runs, data, config_yaml(experiment))
    return data


def finished_record(experiment: Experiment) -> RunRecord | None:
    """Return the record of this cell when it finished before and is not asked to run again."""
    folder = experiment.paths.runs / run_id(experiment)
    if experiment.rerun or not (folder / "record.json").is_file():
        return None
    try:
        record = read_record(folder)
    except ValueError:
        return None  # damaged or of another schema: running again replaces it
    return record if record.status == "finished" else None


def write_failure(experiment: Experiment, error: str) -> RunData:
    """Write the record of a cell that failed, so that reports list it and the next sweep retries it."""
    memory = PeakMemory(torch.device("cpu"))
    data = _record(experiment, {}, None, Evaluated(), Timings(), memory, error=error)
    write_run(experiment.paths.runs, data, config_yaml(experiment))
    return data


def config_yaml(experiment: Experiment) -> str:
    """Return the resolved configuration as YAML, in the layout of `conf/`."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, width=100)


def _record(
    experiment: Experiment,
    fingerprints: dict[str, str],
    quantized: QuantizedModel | None,
    evaluated: Evaluated,
    timings: Timings,
    memory: PeakMemory,
    error: str | None = None,
) -> RunData:
    import pandas as pd

    now = datetime.now(UTC)
    reports = quantized.linears if quantized else ()
    extra: dict[str, object] = {"evaluation": evaluated.protocols}
    if quantized:
        extra["blocks"] = [dataclasses.asdict(b) for b in quantized.blocks]
        extra["n_window_cuts"] = quantized.n_window_cuts
    record = RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id=run_id(experiment),
        status="failed" if error else "finished",
        error=error,
        config=experiment.model_dump(mode="json"),
        environment=describe_environment(memory.device),
        fingerprints={**fingerprints, **evaluated.fingerprints},
        stages=timings.results,
        metrics=evaluated.metrics,
        bits_per_weight=quantized.bits_per_weight if quantized else None,
        checkpoint_bytes=quantized.storage_bits // 8 if quantized else None,
        peak_memory_bytes=memory.bytes,
        warnings=evaluated.warnings,
        skipped_scales=quantized.skipped_scales if quantized else (),
        started=(now - timings.elapsed).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - timings.start, 3),
        extra=extra,
    )
    items = evaluated.items if experiment.evaluation.keep_items else evaluated.items.iloc[:0]
    return RunData(
        record=record,
        items=items,
        tokens=evaluated.tokens if experiment.evaluation.keep_items else {},
        layers=pd.DataFrame([dataclasses.asdict(r) for r in reports]),
    )
