"""What runs have found out, kept under what can be known without a tokenizer or a corpus.

    calibration      tokenizer, calibration settings, the data they name  ->  fingerprint of the tokens
    entry/<stage>    the same, for stages whose own keys hold more        ->  name of the entry

A run notes what it found; a plan reads it, and thereby knows the keys of the stages that follow. What was
never found is stood in for by a hash of the question, which no entry has, and which is the same for all
cells that would find the same. The fingerprints of model, tokenizer and protocols' windows are in stages
of their own, whose keys need no such note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from faqbench.assets import packaged_data_place
from faqbench.calibration import CODE_VERSION as CALIBRATION_VERSION
from faqbench.config import Experiment, UserError
from faqbench.config.identity import calibration_identity
from faqbench.models import tokenizer_source
from faqbench.pipeline.keys import Key, tokenizer_key, weights_key, windows_key
from faqbench.quantization import reads_store
from faqbench.stages import StageCache, hash_json, hash_text

_STAGE = "found"
ENTRIES = ("calibration", "bias_distance", "means")


def note_found(experiment: Experiment, fingerprints: Mapping[str, str], cache: StageCache) -> None:
    """Remember what a run found out, where that can be written.

    Args:
        experiment: the cell.
        fingerprints: of its record.
        cache: that the run used.
    """
    entries = {f"entry/{use.entry.partition('/')[0]}": use.entry for use in cache.uses}
    found = {**fingerprints, **entries}
    with StageCache(cache.root) as notes:
        for name in _names(experiment):
            key = _question(experiment, name)
            if key is not None and name in found:
                with suppress(UserError):  # a plan will know less
                    notes.get(_STAGE, key, partial(_write, found[name]))


def look_up(experiment: Experiment, cache: StageCache) -> dict[str, str]:
    """Return the cell's fingerprints and entries, each found out earlier or stood in for."""
    section, weights = experiment.model, weights_key(experiment)
    fingerprints = {
        "weights": _of_stage("weights", weights, experiment, cache),
        "model": _of_stage("weights", weights, experiment, cache, "model_fingerprint"),
        "tokenizer": _of_stage("tokenizer", tokenizer_key(section), [section], cache),
    }
    for name in experiment.evaluation.protocols:
        key = windows_key(experiment, experiment.model, name)
        fingerprints[f"protocol/{name}"] = _of_stage("windows", key, [experiment, name], cache)
    for name in _names(experiment):
        key = _question(experiment, name)
        found = _read(cache.find(_STAGE, key)) if key is not None else None
        folder = f"{name.removeprefix('entry/')}/" if name.startswith("entry/") else ""
        fingerprints[name] = found or f"{folder}{_stand_in(key, [experiment, name])}"
    return fingerprints


def _of_stage(
    stage: str, key: Key | None, question: object, cache: StageCache, fact: str = "fingerprint"
) -> str:
    """Return the fingerprint that a stage has found out, or what stands in for it."""
    path = cache.find(stage, key) if key is not None else None
    if path is None:
        return _stand_in(key, question)
    found: str = json.loads((path / "facts.json").read_text())[fact]
    return found


def _stand_in(key: Key | None, question: object) -> str:
    return f"unknown-{hash_json(key) if key is not None else hash_text(repr(question))}"


def _names(experiment: Experiment) -> list[str]:
    calibration = ["calibration", *(f"entry/{stage}" for stage in ENTRIES)]
    return calibration if experiment.needs_calibration else []


def _question(experiment: Experiment, name: str) -> Key | None:
    tokenizer = tokenizer_source(experiment.model)
    if tokenizer is None:
        return None
    key: Key = {
        "name": name,
        "version": CALIBRATION_VERSION,
        "tokenizer": tokenizer,
        "data": packaged_data_place()[1],
    }
    settings = calibration_identity(experiment)
    key |= {"files": _files(settings)}
    if name in ("entry/bias_distance", "entry/means"):
        key |= {"weights": weights_key(experiment), "device": experiment.device}
        key |= {"reads": reads_store(experiment.quant)}
    if name == "entry/means":  # of the selection part, whatever is drawn
        drawn = ("seed", "n_samples")
        own = experiment.calibration.model_dump(mode="json")
        return key | {"calibration": {k: v for k, v in own.items() if k not in drawn}}
    return key | {"calibration": settings}


def _files(value: object) -> list[list[object]]:
    """Return size and time stamp of every file that is named anywhere in a JSON value."""
    if isinstance(value, Mapping):
        return [f for k, v in value.items() for f in (*_files(k), *_files(v))]
    if isinstance(value, list | tuple):
        return [f for v in value for f in _files(v)]
    if isinstance(value, str) and "." in value and (path := Path(value).expanduser()).is_file():
        return [[value, path.stat().st_size, path.stat().st_mtime_ns]]
    return []


def _write(found: str, folder: Path) -> None:
    (folder / "fingerprint").write_text(found)


def _read(folder: Path | None) -> str | None:
    return None if folder is None else (folder / "fingerprint").read_text()
