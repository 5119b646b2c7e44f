"""The stages of one cell: their keys, whether they are there, and which of them a run would compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from faqbench.assets import DATA_NAME, fetch, packaged_data_place, packaged_model_place
from faqbench.config import Experiment
from faqbench.evaluation import task_names
from faqbench.pipeline.keys import (
    Key,
    protocol_key,
    quantized_key,
    reference_key,
    statistics_key,
    task_key,
    tokenizer_key,
    weights_key,
    windows_key,
)
from faqbench.pipeline.planning.found import ENTRIES
from faqbench.quantization import reads_store
from faqbench.stages import Progress, StageCache
from faqbench.stages.manifest import MANIFEST, entry_name


@dataclass(frozen=True, kw_only=True)
class StageNeed:
    """One stage of a cell.

    Attributes:
        kind: the stage's folder in the cache.
        title: which protocol, task or method; empty where there is one kind only.
        entry: `<stage>/<hash of key>`, equal for cells that share it.
        exists: whether the entry is there.
        is_due: whether the cell would compute it, were it the only one to run.
    """

    kind: str
    title: str
    entry: str
    exists: bool
    is_due: bool


def stages_of(
    experiment: Experiment, fingerprints: Mapping[str, str], device: str, cache: StageCache
) -> list[StageNeed]:
    """Return the stages of a cell in the order in which it asks for them.

    Args:
        experiment: the cell.
        fingerprints: from `found.look_up`.
        device: cpu or cuda.
        cache: where entries are looked for.
    """

    def need(kind: str, title: str, key: Key, *, is_read: bool = True) -> StageNeed:
        exists = cache.has(kind, key)
        return StageNeed(
            kind=kind,
            title=title,
            entry=f"{kind}/{entry_name(key)}",
            exists=exists,
            is_due=is_read and not exists,
        )

    weights = weights_key(experiment) or {"unknown": fingerprints["weights"]}
    tokenizer = tokenizer_key(experiment.model) or {"unknown": fingerprints["tokenizer"]}
    needs = [
        *_assets(experiment),
        need("weights", "", weights),
        need("tokenizer", "", tokenizer),
    ]
    windows = {
        name: windows_key(experiment, experiment.model, name) or {"unknown": name}
        for name in experiment.evaluation.protocols
    }
    needs += [need("windows", name, key) for name, key in windows.items()]
    if experiment.needs_calibration:
        needs += _calibration(experiment, fingerprints, cache)
    if experiment.quantizes:
        quantized = need(
            "quantized", experiment.quant.name, quantized_key(experiment, fingerprints, device)
        )
        if experiment.needs_calibration and reads_store(experiment.quant):
            key = statistics_key(
                experiment, fingerprints["model"], fingerprints["calibration"], device
            )
            needs.append(need("statistics", "", key, is_read=quantized.is_due))
        needs.append(quantized)
    if experiment.needs_reference:
        references = {
            name: reference_key(experiment, fingerprints, name, device)
            for name in experiment.evaluation.protocols
        }
        needs += [need("reference", name, key) for name, key in references.items()]
    protocols = {
        name: protocol_key(experiment, fingerprints, name, device)
        for name in experiment.evaluation.protocols
    }
    tasks = {
        name: task_key(experiment, fingerprints, name, device)
        for name in experiment.evaluation.tasks
    }
    if experiment.quantizes or not experiment.needs_reference:  # else they are the reference's
        needs += [need("perplexity", name, key) for name, key in protocols.items()]
    needs += [need("tasks", name, key) for name, key in tasks.items()]
    return needs


def fetch_assets(experiments: Iterable[Experiment], progress: Progress) -> None:
    """Fetch the packaged models and data that cells need and that are not there, all at once.

    Raises:
        UserError: when one cannot be had.
    """
    places = {name: place for e in experiments for name, place in _places(e).items()}
    missing = [name for name, place in places.items() if not place.is_dir()]
    if missing:
        fetch(progress, missing)


def _assets(experiment: Experiment) -> list[StageNeed]:
    """Return the packaged model and data of a cell; fetching is due where they are not there."""
    return [
        StageNeed(
            kind="assets",
            title=name,
            entry=f"assets/{place.name}",
            exists=place.is_dir(),
            is_due=not place.is_dir(),
        )
        for name, place in _places(experiment).items()
    ]


def _places(experiment: Experiment) -> dict[str, Path]:
    """Return where a cell's packaged model and data lie, or will, by their names."""
    places = {}
    if experiment.model.source == "packaged":
        assert experiment.model.asset is not None
        places[experiment.model.asset] = packaged_model_place(experiment.model.asset)[0]
    evaluation = experiment.evaluation
    heldout = any(name.startswith("heldout-") for name in evaluation.protocols)
    if heldout or set(evaluation.tasks) & set(task_names()):
        places[DATA_NAME] = packaged_data_place()[0]
    return places


def _calibration(
    experiment: Experiment, fingerprints: Mapping[str, str], cache: StageCache
) -> list[StageNeed]:
    """Return the stages of a calibration set that are known by what earlier runs noted."""
    entries = {stage: fingerprints[f"entry/{stage}"] for stage in ENTRIES}
    exists = {s: (cache.root / "stages" / e / MANIFEST).is_file() for s, e in entries.items()}
    is_read = {
        "calibration": True,
        "bias_distance": True,
        "means": reads_store(experiment.quant) and not exists["bias_distance"],
    }
    return [
        StageNeed(
            kind=stage,
            title="reference" if stage == "means" else "",
            entry=entry,
            exists=exists[stage],
            is_due=is_read[stage] and not exists[stage],
        )
        for stage, entry in entries.items()
        if exists[stage] or is_read[stage]
    ]
