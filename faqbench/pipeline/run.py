"""Calibrate, quantize, evaluate, record: one straight line, with no branch on a method's name."""

from __future__ import annotations

import dataclasses
import time
from datetime import UTC, datetime
from typing import Any

import torch
import yaml

from faqbench.config import Experiment, run_id
from faqbench.hardware import dtype_warning, resolve_device
from faqbench.models import ModelHolder
from faqbench.pipeline.bias import bias_distance_of, calibration_warnings, describe_calibration
from faqbench.pipeline.calibrating import calibration_set
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.checking import check_model
from faqbench.pipeline.environment import describe_environment
from faqbench.pipeline.evaluating import Evaluated, evaluate
from faqbench.pipeline.gates import Cell, check_gates
from faqbench.pipeline.leak_guard import guard_against_leaks
from faqbench.pipeline.memory import PeakMemory
from faqbench.pipeline.neighbours import Neighbours
from faqbench.pipeline.planning import Estimate, compare_with_plan, note_found
from faqbench.pipeline.quantizing import quantized_weights
from faqbench.pipeline.reference import reference_scores
from faqbench.pipeline.statistics import statistics_of
from faqbench.pipeline.timing import Timings
from faqbench.pipeline.weights_check import check_weights
from faqbench.quantization import QuantizedModel, describe_activations
from faqbench.records import SCHEMA_VERSION, RunData, RunRecord, write_run
from faqbench.sources import sources_of
from faqbench.stages import Progress, StageCache


def run(
    experiment: Experiment,
    *,
    cache: StageCache,
    progress: Progress,
    holder: ModelHolder | None = None,
    estimate: Estimate | None = None,
) -> RunData:
    """Run one cell and write its folder.

    Args:
        experiment: what to run.
        cache: where finished stages are kept and found.
        progress: told of every stage.
        holder: keeps the model for the next cell of this process.
        estimate: what a plan said of the cell, to be compared with what happens.

    Returns:
        The record with its tables, as written to `paths.runs`.

    Raises:
        UserError: for anything that the user can mend.
    """
    check_model(experiment)
    timings, device = Timings(), resolve_device(experiment.device)
    warnings = _warnings_of_dtype(experiment, device, progress)
    memory = PeakMemory(device)
    model = CellModel(experiment, device, holder or ModelHolder(), cache, timings, progress)
    model.find_facts()
    check_model(experiment)  # once more, for one that had to be fetched first
    warnings += model.facts.warnings
    fingerprints, sources = dict(model.fingerprints), sources_of(experiment, model.section, cache)

    calibration = statistics = distance = None
    facts: dict[str, Any] = {}
    if experiment.needs_calibration:
        with timings.stage("calibrate") as stage:
            calibration, stage.cached = calibration_set(
                experiment, model.tokenizer, cache, progress
            )
        fingerprints["calibration"] = calibration.fingerprint
        overlap = guard_against_leaks(experiment, calibration, cache, progress)
        statistics = statistics_of(experiment, model, calibration, cache, timings, progress)
        distance = bias_distance_of(
            experiment, model, calibration, statistics, cache, timings, progress
        )
        facts = describe_calibration(experiment, calibration) | {"overlap": overlap}
        warnings += calibration_warnings(experiment, calibration)

    references = {}
    if experiment.needs_reference:  # before the weights are replaced
        with timings.stage("reference") as stage:
            references = reference_scores(experiment, model, memory, cache, progress)
            stage.cached = all(r.entry.cached for r in references.values())

    quantized = None
    if experiment.quantizes:
        quantized = quantized_weights(
            experiment,
            model,
            calibration,
            statistics,
            fingerprints,
            cache,
            timings,
            progress,
            while_pristine=distance,
        )

    if distance is not None:
        facts["bias_distance"] = distance()

    with timings.stage("evaluate") as stage:
        evaluated = evaluate(experiment, model, fingerprints, references, memory, cache, progress)
        stage.cached = evaluated.cached

    evaluated = dataclasses.replace(evaluated, warnings=(*warnings, *evaluated.warnings))
    data = _record(experiment, fingerprints, facts, quantized, evaluated, timings, memory, cache)
    cell = Cell(
        record=data.record,
        evaluated=evaluated,
        weights=check_weights(experiment, model, fingerprints, cache),
        quantized=quantized,
        neighbours=Neighbours(experiment.paths.runs),
    )
    record = dataclasses.replace(data.record, gates=check_gates(cell))
    record.extra["sources"] = sources
    record = _failed_if_not_finite(record)
    if estimate is not None:
        record.extra["plan"] = compare_with_plan(estimate, record, cache.uses)
    data = dataclasses.replace(data, record=record)
    note_found(experiment, record.fingerprints, cache)
    write_run(experiment.paths.runs, data, config_yaml(experiment))
    return data


def write_failure(experiment: Experiment, error: str) -> RunData:
    """Write the record of a cell that failed, so that reports list it and the next sweep retries it."""
    memory = PeakMemory(torch.device("cpu"))
    data = _record(experiment, {}, {}, None, Evaluated(), Timings(), memory, None, error)
    write_run(experiment.paths.runs, data, config_yaml(experiment))
    return data


def _warnings_of_dtype(
    experiment: Experiment, device: torch.device, progress: Progress
) -> tuple[str, ...]:
    """Return what is to be said of the dtype, said at once to whoever could still choose another.

    Raises:
        UserError: for a dtype that the device does not have.
    """
    warning = dtype_warning(device, experiment.dtype)
    if warning is None:
        return ()
    progress.note(warning)
    return (warning,)


def _failed_if_not_finite(record: RunRecord) -> RunRecord:
    """Call a cell failed whose metrics are not numbers; other gates only mark it."""
    for gate in record.gates:
        if gate.name == "finite" and not gate.passed:
            error = f"The gate on finite metrics failed: {gate.detail}."
            return dataclasses.replace(record, status="failed", error=error)
    return record


def config_yaml(experiment: Experiment) -> str:
    """Return the resolved configuration as YAML, in the layout of `conf/`."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, width=100)


def _record(
    experiment: Experiment,
    fingerprints: dict[str, str],
    calibration: dict[str, Any],
    quantized: QuantizedModel | None,
    evaluated: Evaluated,
    timings: Timings,
    memory: PeakMemory,
    cache: StageCache | None,
    error: str | None = None,
) -> RunData:
    import pandas as pd

    now = datetime.now(UTC)
    reports = quantized.linears if quantized else ()
    extra: dict[str, object] = {"evaluation": evaluated.protocols}
    if calibration:
        extra["calibration"] = calibration
    if quantized:
        extra["blocks"] = [dataclasses.asdict(b) for b in quantized.blocks]
        extra["n_window_cuts"] = quantized.n_window_cuts
    if experiment.quant.activations.bits is not None:
        extra["activations"] = describe_activations(experiment.quant.activations)
    if cache is not None:
        extra["stage_keys"] = [dataclasses.asdict(use) for use in cache.uses]
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
