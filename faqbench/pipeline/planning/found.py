"""Fingerprints that runs have found out, kept under what can be known without a tokenizer or a corpus.

    calibration         model's tokenizer, calibration settings, the data they name -> tokens' fingerprint
    protocol/<name>     model's tokenizer, the protocol, the data it names          -> windows' fingerprint

A run notes what it found; a plan reads it, and thereby knows the keys of the stages that follow. What was
never found is stood in for by a hash of the question, which no entry has, and which is the same for all
cells that would find the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from faqbench.assets import packaged_data_key
from faqbench.config import Experiment, UserError
from faqbench.config.identity import calibration_identity
from faqbench.models import tokenizer_source
from faqbench.pipeline.keys import Key, weights_key
from faqbench.stages import StageCache, hash_json

_VERSION = 1
_STAGE = "found"


def note_found(experiment: Experiment, fingerprints: Mapping[str, str], cache: StageCache) -> None:
    """Remember what a run found out about its tokens, where that can be written."""
    with StageCache(cache.root) as notes:
        for name in _names(experiment):
            key = _question(experiment, name)
            if key is not None and name in fingerprints:
                with suppress(UserError):  # a plan will know less
                    notes.get(_STAGE, key, partial(_write, fingerprints[name]))


def look_up(experiment: Experiment, cache: StageCache) -> dict[str, str]:
    """Return the cell's fingerprints, each found out earlier or stood in for."""
    weights = weights_key(experiment)
    path = cache.find("weights", weights) if weights is not None else None
    known = None if path is None else json.loads((path / "facts.json").read_text())["fingerprint"]
    stand_in = weights or experiment.model.model_dump(mode="json")
    fingerprints = {"weights": known or f"unknown-{hash_json(stand_in)}"}
    for name in _names(experiment):
        key = _question(experiment, name)
        found = _read(cache.find(_STAGE, key)) if key is not None else None
        fingerprints[name] = found or f"unknown-{hash_json([name, key or stand_in])}"
    return fingerprints


def _names(experiment: Experiment) -> list[str]:
    calibration = ["calibration"] if experiment.needs_calibration else []
    return [*calibration, *(f"protocol/{name}" for name in experiment.evaluation.protocols)]


def _question(experiment: Experiment, name: str) -> Key | None:
    tokenizer = tokenizer_source(experiment.model)
    if tokenizer is None:
        return None
    key: Key = {"version": _VERSION, "tokenizer": tokenizer, "data": packaged_data_key()}
    if name == "calibration":
        settings = calibration_identity(experiment)
        return key | {"calibration": settings, "files": _files(settings)}
    path = experiment.data.wikitext2_path
    return key | {
        "protocol": name,
        "n_windows": experiment.n_windows(),
        "files": _files([] if path is None else [str(path)]),
    }


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
