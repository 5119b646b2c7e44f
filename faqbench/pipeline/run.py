"""Calibrate, quantize, evaluate, record: one straight line, with no branch on a method's name.

Before anything is computed, all is checked that a model's config and headers tell: of all cells of a sweep
before the first one starts, and by `plan` (`check_models`), and by each cell again, since files change
(`check_model`). A check that concerns the model alone belongs into `models.inspection`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from faqbench.config import Experiment, UserError, run_id
from faqbench.corpora import check_domain
from faqbench.evaluation import check_context, resolve_protocol
from faqbench.hardware import dtype_warning
from faqbench.models import ModelHolder, check_rotation, inspect_model, is_streamed, streaming_note
from faqbench.pipeline.calibrating import calibration_warnings, describe_calibration
from faqbench.pipeline.cell import CellRun
from faqbench.pipeline.cell_model import WeightFacts
from faqbench.pipeline.environment import PeakMemory, describe_environment
from faqbench.pipeline.evaluating import Evaluated, evaluate
from faqbench.pipeline.foreign import describe_foreign, driver_of
from faqbench.pipeline.gates import Finished, check_gates
from faqbench.pipeline.graph import hash_in, stages_of
from faqbench.pipeline.neighbours import Neighbours
from faqbench.pipeline.planning import Estimate, compare_with_plan
from faqbench.quantization import (
    QuantizedModel,
    assign_grids,
    check_correction,
    describe_activations,
    fingerprint_codes,
)
from faqbench.records import SCHEMA_VERSION, Gate, RunData, RunRecord, write_run
from faqbench.sources import Facts, sources_of
from faqbench.stages import Progress, StageCache

if TYPE_CHECKING:
    import pandas as pd


def run(
    experiment: Experiment,
    *,
    cache: StageCache,
    progress: Progress,
    holder: ModelHolder | None = None,
    estimate: Estimate | None = None,
    beside: Sequence[Experiment] = (),
) -> RunData:
    """Run one cell and write its folder.

    Args:
        experiment: what to run.
        cache: where finished stages are kept and found.
        progress: told of every stage.
        holder: keeps the model for the next cell of this process.
        estimate: what a plan said of the cell, to be compared with what happens.
        beside: other cells that this process is to run, which may be quantized in the same walk.

    Returns:
        The record with its tables, as written to `paths.runs`.

    Raises:
        UserError: for anything that the user can mend.
    """
    check_model(experiment)
    cell = CellRun(experiment, cache, progress, holder or ModelHolder(), beside)
    said = _warnings_of_dtype(cell)
    _fetch(cell)
    sources = sources_of(experiment, cell.model.experiment.model, partial(hash_in, cell))
    cell.walk()
    evaluated = evaluate(cell)
    record = _record(cell, evaluated, sources, said)
    if estimate is not None:
        plan = compare_with_plan(estimate, record, cell.uses)
        record = dataclasses.replace(record, extra={**record.extra, "plan": plan})
    finished = Finished(
        record=record,
        evaluated=evaluated,
        weights=cell.get("weights_check"),
        quantized=_quantized(cell),
        neighbours=Neighbours(experiment.paths.runs),
    )
    data = _run_data(cell, evaluated, _judged(record, check_gates(finished)))
    write_run(experiment.paths.runs, data, experiment.as_yaml())
    return data


def quantize_again(experiment: Experiment, *, cache: StageCache, progress: Progress) -> Path:
    """Return the folder of a cell's quantized linears, made anew where the cache has lost it.

    Raises:
        UserError: for anything that the user can mend.
    """
    check_model(experiment)
    cell = CellRun(experiment, cache, progress, ModelHolder())
    _fetch(cell)
    stage = f"quantized {experiment.quant.name}"
    cell.get(stage)
    return cell.entry(stage)


def _fetch(cell: CellRun) -> None:
    """Have the cell's model here: only then is known whether it fits, and so which stages there are.

    Raises:
        UserError: as `check_model` does, for a model that was not here before.
    """
    cell.model.fetch()
    streamed = check_model(cell.experiment)
    if streamed:
        cell.progress.note(streaming_note(cell.experiment))
    cell.stages = stages_of(cell.experiment, streamed=streamed)


def write_failure(experiment: Experiment, error: str) -> RunData:
    """Write the record of a cell that failed, so that reports list it and the next sweep retries it."""
    memory = PeakMemory(torch.device("cpu"))
    record = RunRecord(
        **_head(experiment, memory.device),
        status="failed",
        error=error,
        fingerprints={},
        stages={},
        metrics=(),
        bits_per_weight=None,
        checkpoint_bytes=None,
        peak_memory_bytes=memory.bytes,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        extra={"evaluation": {}},
    )
    data = RunData(record=record, items=Evaluated().items, tokens={}, layers=_layers(None))
    write_run(experiment.paths.runs, data, experiment.as_yaml())
    return data


def _warnings_of_dtype(cell: CellRun) -> tuple[str, ...]:
    """Return what is to be said of the dtype, said at once to whoever could still choose another.

    Raises:
        UserError: for a dtype that the device does not have.
    """
    warning = dtype_warning(cell.device, cell.experiment.dtype)
    if warning is None:
        return ()
    cell.progress.note(warning)
    return (warning,)


def _quantized(cell: CellRun) -> QuantizedModel | None:
    """Return the reports of the cell's quantized weights; None for the baseline."""
    experiment = cell.experiment
    quantized: QuantizedModel | None = (
        cell.get(f"quantized {experiment.quant.name}") if experiment.quantizes else None
    )
    return quantized


def _judged(record: RunRecord, gates: tuple[Gate, ...]) -> RunRecord:
    """Return a record with its gates, failed where its numbers are none; other gates only mark it."""
    record = dataclasses.replace(record, gates=gates)
    for gate in gates:
        if gate.name == "finite" and not gate.passed:
            error = f"The gate on finite metrics failed: {gate.detail}."
            return dataclasses.replace(record, status="failed", error=error)
    return record


def _head(experiment: Experiment, device: torch.device) -> dict[str, Any]:
    """Return the fields of a record that are known of every cell, whatever becomes of it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id(experiment),
        "config": experiment.model_dump(mode="json"),
        "environment": describe_environment(device),
    }


def _record(
    cell: CellRun, evaluated: Evaluated, sources: dict[str, Facts], said: tuple[str, ...]
) -> RunRecord:
    """Return the record of a cell whose stages are all there; its gates are still open."""
    weights: WeightFacts = cell.get("weights")
    quantized, now = _quantized(cell), datetime.now(UTC)
    warnings = [*said, *weights.warnings, *(quantized.warnings if quantized else ())]
    extra: dict[str, object] = {"evaluation": evaluated.protocols, "sources": sources}
    given = ["weights", "model", "tokenizer"]
    if cell.experiment.is_foreign and not cell.experiment.needs_calibration:
        given.append("checkpoint")  # of a tool that ran here it is a draw's own
    if cell.experiment.needs_calibration:
        given.append("calibration")
        extra["calibration"] = describe_calibration(cell)
        warnings += calibration_warnings(cell)
    if quantized is not None:
        extra["blocks"] = [dataclasses.asdict(b) for b in quantized.blocks]
        extra["n_window_cuts"] = quantized.n_window_cuts
        if cell.experiment.is_foreign:
            extra["checkpoint"] = describe_foreign(cell)
        else:
            codes = cell.entry(f"quantized {cell.experiment.quant.name}")
            extra["codes_sha256"] = fingerprint_codes(codes)
        if quantized.rotation is not None:
            extra["rotation"] = dataclasses.asdict(quantized.rotation)
    if not cell.experiment.method.activations.is_idle:
        extra["activations"] = describe_activations(cell.experiment.quant.activations)
    extra["stage_keys"] = [dataclasses.asdict(use) for use in cell.uses]
    return RunRecord(
        **_head(cell.experiment, cell.device),
        status="finished",
        error=None,
        fingerprints={k: cell.fingerprints[k] for k in given} | dict(evaluated.fingerprints),
        stages=cell.timings,
        metrics=evaluated.metrics,
        bits_per_weight=quantized.bits_per_weight if quantized else None,
        checkpoint_bytes=quantized.storage_bits // 8 if quantized else None,
        peak_memory_bytes=cell.memory.bytes,
        warnings=(*warnings, *evaluated.warnings),
        skipped_scales=quantized.skipped_scales if quantized else (),
        started=(now - timedelta(seconds=cell.seconds)).isoformat(timespec="seconds"),
        seconds=round(cell.seconds, 3),
        extra=extra,
    )


def _run_data(cell: CellRun, evaluated: Evaluated, record: RunRecord) -> RunData:
    is_kept = cell.experiment.evaluation.keep_items
    return RunData(
        record=record,
        items=evaluated.items if is_kept else evaluated.items.iloc[:0],
        tokens=evaluated.tokens if is_kept else {},
        layers=_layers(_quantized(cell)),
    )


def _layers(quantized: QuantizedModel | None) -> pd.DataFrame:
    import pandas as pd  # takes a quarter of a second, which a plan can do without

    reports = quantized.linears if quantized else ()
    return pd.DataFrame([dataclasses.asdict(r) for r in reports])


def check_models(experiments: Iterable[Experiment]) -> None:
    """Check the models and the domains of several cells; of those that differ in their draw alone, one.

    Raises:
        UserError: all mistakes, each once.
    """
    mistakes: dict[str, None] = {}
    for experiment in {_but_its_draw(experiment): experiment for experiment in experiments}.values():
        for check in (_check_domains, check_model):
            try:
                check(experiment)
            except UserError as error:
                mistakes[str(error)] = None
    if mistakes:
        raise UserError("\n  ".join(mistakes))


def _check_domains(experiment: Experiment) -> None:
    """Check the domains that a cell is calibrated on; none is read where no stage reads activations.

    Raises:
        UserError: with the key that names a domain which there is not.
    """
    if not experiment.needs_calibration:
        return
    calibration, scenario = experiment.calibration, experiment.scenario
    if calibration.mixture is None:
        check_domain(calibration.domain, "calibration.domain")
    if scenario.domain is not None:
        check_domain(scenario.domain, "scenario.domain")
    for key, mixture in (("calibration", calibration.mixture), ("scenario", scenario.mixture)):
        for domain in mixture or ():
            check_domain(domain, f"{key}.mixture")


def _but_its_draw(experiment: Experiment) -> str:
    return experiment.model_dump_json(exclude={"seed": True, "calibration": {"seed"}})


def check_model(experiment: Experiment) -> bool:
    """Check a cell's model, and that the cell's settings fit it; a model that is not here yet passes.

    Returns:
        Whether the model is read block by block; False for one that is not here yet.

    Raises:
        UserError: for a model that cannot be used, a group size that does not divide a linear's input, a
            pattern that matches no linear, a correction or a rotation that does not suit the family,
            a protocol of windows that are longer than the model's context, and a budget that no block fits.
    """
    protocols = [resolve_protocol(name, experiment.data) for name in experiment.evaluation.protocols]
    architecture = inspect_model(experiment.model)
    if architecture is None:
        return False
    try:
        has_own_grid = experiment.is_foreign and not experiment.needs_calibration  # a checkpoint
        if not has_own_grid:
            assign_grids(architecture, experiment.quant)
        if experiment.is_foreign and experiment.needs_calibration:
            driver_of(experiment)
        check_correction(experiment.quant, architecture.roles)
        check_rotation(architecture, experiment.quant)
        for protocol in protocols:
            check_context(architecture.context, protocol.seq_len)
        return is_streamed(experiment)
    except UserError as error:
        raise UserError(f"model={experiment.model.name}: {error}") from error
