"""What a record says of its calibration set: how it was drawn, and how far it is from the reference set.

The distance in activations needs the statistics of the full precision pass. Methods that gather none
(GPTQ and the corrections see the quantized stream only) have no `activation_shift`, with the reason
beside it; a run of another method on the same calibration tokens has it, since it depends on the tokens
and the model alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from faqbench.calibration import CalibrationSet, activation_shift, token_divergence
from faqbench.config import Experiment, UserError
from faqbench.pipeline.calibrating import reference_set
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.statistics import Statistics
from faqbench.quantization.means import CODE_VERSION, observe_means, read_means
from faqbench.stages import Progress, StageCache

DISTANCE_VERSION = 1  # raise it when the same sets would be at another distance


def describe_calibration(experiment: Experiment, drawn: CalibrationSet) -> dict[str, Any]:
    """Return how a calibration set was drawn, as JSON; the bias distance is added by the caller."""
    scenario = experiment.scenario
    of_text = not (scenario.random_tokens or scenario.leak)
    return {
        "scenario": scenario.name,
        "domain": drawn.domain,
        "mixture": dict(experiment.calibration_mixture) if of_text else None,
        "n_windows_of": dict(drawn.n_windows_of),
        "n_samples": len(drawn.tokens),
        "seq_len": experiment.calibration.seq_len,
        "seed": drawn.seed,
        "n_texts_used": drawn.n_texts_used,
        "sources": [dict(source) for source in drawn.sources],
        "window_start": drawn.window_start,
        "repeated_share": drawn.repeated_share,
        "allow_overlap": list(scenario.allow_overlap),
    }


def calibration_warnings(experiment: Experiment, drawn: CalibrationSet) -> tuple[str, ...]:
    """Return what a reader of the numbers must know of the calibration set."""
    scenario, found = experiment.scenario, []
    if scenario.leak:
        found.append(
            f"Calibrated on the evaluation's own text on purpose (scenario={scenario.name}): "
            "perplexity on it flatters the method."
        )
    if drawn.repeated_share > 0 and (scenario.copies or 1) == 1:
        found.append(
            f"{drawn.repeated_share:.0%} of the calibration tokens are from texts that occur a second "
            "time (allow_repeat=true): there were too few."
        )
    empty = [domain for domain, count in drawn.n_windows_of.items() if count == 0]
    if empty:
        found.append(
            f"{' and '.join(empty)} gave no window of {len(drawn.tokens)}: its share of the mixture is "
            "too small."
        )
    return tuple(found)


def bias_distance(
    experiment: Experiment,
    model: CellModel,
    drawn: CalibrationSet,
    statistics: Statistics | None,
    cache: StageCache,
    progress: Progress,
) -> tuple[dict[str, Any], bool]:
    """Return the distance of a calibration set from the reference set as JSON, and whether it was cached.

    Args:
        experiment: its calibration, without the scenario, says what the reference set is.
        model: of the cell; loaded when the distance is not known yet.
        drawn: the calibration set.
        statistics: its statistics, asked for in that case; None for methods that gather none.
        cache: of the reference set and its activations, one pass for a whole study.
        progress: shows that pass.
    """
    unknown = {"reference": None, "token_js": None, "activation_shift": None}
    try:
        reference = reference_set(experiment, model.tokenizer, cache, progress)
    except UserError as error:
        return unknown | {"reason": f"there is no reference set: {error}"}, True
    settings = experiment.calibration
    key: dict[str, object] = {
        "version": DISTANCE_VERSION,
        "means_version": CODE_VERSION,
        "tokens": drawn.fingerprint,
        "reference": reference.fingerprint,
    }
    if statistics is not None:
        key["activations"] = {
            "weights": model.fingerprint,
            "select": settings.tokens,
            "dtype": settings.dtype,
            "batch_size": settings.batch_size,
            "torch": torch.__version__,
            "device": model.device.type,
        }

    def build(folder: Path) -> None:
        found = _measure(experiment, model, drawn, reference, statistics, cache, progress)
        (folder / "distance.json").write_text(json.dumps(found))

    entry = cache.get("bias_distance", key, build)
    found = json.loads((entry.path / "distance.json").read_text())
    named = f"{len(reference.tokens)} windows of the selection part of {reference.domain}"
    return {"reference": named, **found}, entry.cached


def _measure(
    experiment: Experiment,
    model: CellModel,
    drawn: CalibrationSet,
    reference: CalibrationSet,
    statistics: Statistics | None,
    cache: StageCache,
    progress: Progress,
) -> dict[str, Any]:
    result: dict[str, Any] = {"token_js": token_divergence(drawn.tokens, reference.tokens)}
    if statistics is None:
        reason = "the method gathers no full precision statistics"
        return result | {"activation_shift": None, "reason": reason}
    wanted = _reference_means(experiment, model, reference, cache, progress)
    roles = [role.name for role in model.architecture.roles]
    store = statistics()
    found = {
        role: [store.mean_abs(block, role).cpu() for block in range(store.n_blocks)]
        for role in roles
    }
    return result | {"activation_shift": activation_shift(found, wanted)}


def _reference_means(
    experiment: Experiment,
    model: CellModel,
    reference: CalibrationSet,
    cache: StageCache,
    progress: Progress,
) -> dict[str, Any]:
    settings = experiment.calibration

    def build(folder: Path) -> None:
        observe_means(
            model.pristine(),
            reference.tokens,
            batch_size=settings.batch_size,
            select=settings.tokens,
            folder=folder,
            progress=progress,
        )

    key = {
        "version": CODE_VERSION,
        "weights": model.fingerprint,
        "tokens": reference.fingerprint,
        "select": settings.tokens,
        "batch_size": settings.batch_size,
        "device": model.device.type,
        "torch": torch.__version__,
    }
    entry = cache.get("reference_means", key, build)
    return read_means(entry.path, model.architecture.n_blocks)
