"""What a record says of its calibration set: how it was drawn, and how far it is from the reference set.

The distance in activations needs mean|x| of the full precision pass on the set. Methods that search in its
statistics have it already, and so has any method whose draw another one has searched in; the rest (GPTQ
and the corrections, which see the quantized stream only) pay for one forward pass per draw, without Gram
matrices. The numbers are the same to the bit either way, so what is cached decides the time alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache as once
from pathlib import Path
from typing import Any

from torch import Tensor

from faqbench.calibration import CalibrationSet, activation_shift, token_divergence
from faqbench.config import Experiment, UserError
from faqbench.pipeline.calibrating import reference_set
from faqbench.pipeline.cell_model import CellModel
from faqbench.pipeline.keys import computed_on, statistics_key
from faqbench.pipeline.statistics import Statistics
from faqbench.pipeline.timing import Timings
from faqbench.quantization.means import CODE_VERSION, copy_means, observe_means, read_means
from faqbench.stages import Progress, StageCache

DISTANCE_VERSION = 2  # raise it when the same sets would be at another distance


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


def bias_distance_of(
    experiment: Experiment,
    model: CellModel,
    drawn: CalibrationSet,
    statistics: Statistics | None,
    cache: StageCache,
    timings: Timings,
    progress: Progress,
) -> Callable[[], dict[str, Any]]:
    """Return a function that gives the distance of a cell's calibration set, measured when first asked."""

    @once
    def distance() -> dict[str, Any]:
        with timings.stage("bias_distance") as stage:
            found, stage.cached = bias_distance(
                experiment, model, drawn, statistics, cache, progress
            )
        return found

    return distance


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
        statistics: its statistics, asked for in that case; None for methods that gather none, which take
            a pass for the means alone.
        cache: of the reference set and its activations, one pass for a whole study.
        progress: shows that pass.
    """
    unknown = {"reference": None, "token_js": None, "activation_shift": None}
    try:
        reference = reference_set(experiment, model.tokenizer, cache, progress)
    except UserError as error:
        return unknown | {"reason": f"there is no reference set: {error}"}, True
    key: dict[str, object] = {
        "version": DISTANCE_VERSION,
        "means_version": CODE_VERSION,
        "tokens": drawn.fingerprint,
        "reference": reference.fingerprint,
    }
    key |= _pass_key(experiment, model)

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
    found = _means("drawn", experiment, model, drawn, statistics, cache, progress)
    wanted = _means("reference", experiment, model, reference, None, cache, progress)
    return {
        "token_js": token_divergence(drawn.tokens, reference.tokens),
        "activation_shift": activation_shift(found, wanted),
    }


def _means(
    title: str,
    experiment: Experiment,
    model: CellModel,
    tokens: CalibrationSet,
    statistics: Statistics | None,
    cache: StageCache,
    progress: Progress,
) -> dict[str, list[Tensor]]:
    """Return mean|x| by role, of every block in turn, from statistics or from a pass of its own."""
    settings = experiment.calibration
    known = statistics_key(
        experiment, model.fingerprints["model"], tokens.fingerprint, model.device.type
    )

    def build(folder: Path) -> None:
        there = cache.find("statistics", known)
        if there is not None:
            copy_means(there, folder)
        elif statistics is not None:
            copy_means(statistics().folder, folder)
        else:
            observe_means(
                model.pristine(),
                tokens.tokens,
                batch_size=settings.batch_size,
                select=settings.tokens,
                folder=folder,
                progress=progress,
            )

    key = {"version": CODE_VERSION, "tokens": tokens.fingerprint, **_pass_key(experiment, model)}
    return read_means(cache.get("means", key, build, title).path, model.architecture.n_blocks)


def _pass_key(experiment: Experiment, model: CellModel) -> dict[str, object]:
    """Return the part of a key that a full precision pass depends on, its tokens left out."""
    settings = experiment.calibration
    return {
        "model": model.fingerprints["model"],
        "select": settings.tokens,
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        **computed_on(model.device.type),
    }
