"""The key of every stage: what its result depends on, and the version of the code that makes it.

Every key is a function of an experiment, of what the stages that it needs have given, and of the kind of
device, never of a model in memory, so that a plan can look stages up without loading anything. Keys of
parts of a cell (a protocol, a task, a set of tokens) are told its name first.

    weights        where they come from              -> fingerprints of the weights and of the model
    tokenizer      where it comes from               -> fingerprint of the tokenizer
    calibration    where the texts come from, the tokenizer, how they are drawn  -> of the tokens
    windows        a protocol's text, the tokenizer  -> fingerprint of the windows
    overlap        the calibration set, where an evaluation's text comes from
    statistics     model, calibration tokens, how tokens count
    means          the same
    quantized      model, the method, calibration tokens; of another tool's checkpoint its fingerprint
    reference      model, a protocol's tokens: what quantized models are compared with
    evaluated      the part of every evaluation's key that says which model is scored
    tasks          the same, the tokenizer, the task's data, and the versions of what reads them

A model is its weights and all else that its forward depends on (`models.forward`). Whatever runs a
forward also has the kind of device, torch and transformers in its key. A key is None where that on which
it depends has no version that is known: then the stage is made anew, and kept nowhere.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from faqbench.assets import packaged_data_place
from faqbench.config import Experiment
from faqbench.config.identity import calibration_identity, quant_identity
from faqbench.evaluation import (
    HARNESS_VERSION,
    SCORER_VERSION,
    expected_tokens_hash,
    resolve_protocol,
    task_names,
    text_source,
)
from faqbench.evaluation.overlap import CODE_VERSION as OVERLAP_VERSION
from faqbench.models import PACKED_VERSION, ROTATION_VERSION, tokenizer_source, weights_source
from faqbench.pipeline.cell import Fingerprints, Key
from faqbench.quantization import CHECKPOINT_VERSION
from faqbench.quantization import CODE_VERSION as QUANTIZATION_VERSION
from faqbench.quantization.activations import CODE_VERSION as STATISTICS_VERSION
from faqbench.quantization.activations import MEANS_VERSION
from faqbench.stages import library_version

WEIGHTS_VERSION = 3  # raise it when a fingerprint or the facts beside it change
TOKENIZER_VERSION = 1  # raise it when `fingerprint_tokenizer` tells other tokenizers apart
DISTANCE_VERSION = 2  # raise it when the same sets would be at another distance
REPORTS_VERSION = 1  # raise it when the same checkpoint would be reported otherwise
CHECK_VERSION = 2  # raise it when the same weights would be found otherwise


def weights_key(experiment: Experiment, _: Fingerprints, __: str = "") -> Key | None:
    """Return the key of what is known of the weights; None when their source is not on this machine."""
    source = weights_source(experiment.model)
    if source is None:
        return None
    return {
        "version": WEIGHTS_VERSION,
        "source": source,
        "dtype": experiment.calibration.dtype,
        # They also choose the attention implementation, which is a part of the model's fingerprint.
        "libraries": _versions("torch", "transformers"),
    }


def tokenizer_key(experiment: Experiment, _: Fingerprints, __: str = "") -> Key | None:
    """Return the key of a tokenizer's fingerprint; None when its source is not on this machine."""
    source = tokenizer_source(experiment.model)
    if source is None:
        return None
    libraries = _versions("tokenizers", "transformers")
    return {"version": TOKENIZER_VERSION, "source": source, "libraries": libraries}


def overlap_key(name: str, experiment: Experiment, given: Fingerprints, _: str = "") -> Key | None:
    """Return the key of the text that an evaluation shares with the calibration set.

    A task of the hub is known by its name, so that a finished cell does not ask the hub again.
    """
    if "entry/calibration" not in given:  # its texts have no version
        return None
    key: Key = {"version": OVERLAP_VERSION, "calibration": given["entry/calibration"], "evaluation": name}
    if name in experiment.evaluation.tasks:
        key |= {"data": _task_data(name), "limit": experiment.n_documents()}
        return key
    text = text_source(resolve_protocol(name, experiment), experiment)
    return None if text is None else key | {"text": text}


def statistics_key(experiment: Experiment, given: Fingerprints, device: str) -> Key:
    """Return the key of the activation statistics.

    They depend on the model, the tokens, how tokens count and the batch size (by rounding); not on
    bits, window, gamma or any other choice of a quantizer, so one pass serves a whole sweep.
    """
    settings = experiment.calibration
    return _rotation(experiment) | {
        "version": STATISTICS_VERSION,
        "model": given["model"],
        "tokens": given["calibration"],
        "select": settings.tokens,
        "batch_size": settings.batch_size,
        **computed_on(device),
    }


def means_key(tokens: str, experiment: Experiment, given: Fingerprints, device: str) -> Key:
    """Return the key of mean|x| on a set of tokens, `calibration` or `reference_set`."""
    of_pass = _pass_key(experiment, given, device)
    return {"version": MEANS_VERSION, "tokens": given[tokens], **of_pass}


def distance_key(experiment: Experiment, given: Fingerprints, device: str) -> Key:
    """Return the key of the distance of a calibration set from the reference set."""
    return {
        "version": DISTANCE_VERSION,
        "means_version": MEANS_VERSION,
        "tokens": given["calibration"],
        "reference": given["reference_set"],
        **_pass_key(experiment, given, device),
    }


def _pass_key(experiment: Experiment, given: Fingerprints, device: str) -> Key:
    """Return the part of a key that a full precision pass depends on, its tokens left out."""
    settings = experiment.calibration
    return {
        "model": given["model"],
        "select": settings.tokens,
        "dtype": settings.dtype,
        "batch_size": settings.batch_size,
        **computed_on(device),
    }


def quantized_key(experiment: Experiment, given: Fingerprints, device: str) -> Key:
    """Return the key of the quantized weights, and of the reports that come with them."""
    key = evaluated_key(experiment, given, device)
    del key["dtype"]
    key["files"] = CHECKPOINT_VERSION
    key["trace_windows"] = experiment.quant.trace_windows if experiment.needs_calibration else 0
    return key


def reports_key(_: Experiment, given: Fingerprints, __: str) -> Key:
    """Return the key of the reports of a checkpoint that another tool made."""
    return {
        "version": REPORTS_VERSION,
        "files": PACKED_VERSION,
        "checkpoint": given["checkpoint"],
        "parent": given["model"],
    }


def windows_key(name: str, experiment: Experiment, _: Fingerprints, __: str = "") -> Key | None:
    """Return the key of a protocol's windows, or None when its text or tokenizer has no known version."""
    protocol = resolve_protocol(name, experiment)
    text, tokenizer = text_source(protocol, experiment), tokenizer_source(experiment.model)
    if text is None or tokenizer is None:
        return None
    return {
        "protocol": asdict(protocol),
        "text": text,
        "tokenizer": tokenizer,
        "libraries": _versions("tokenizers", "transformers"),
        "n_windows": experiment.n_windows(),
        "add_bos": experiment.evaluation.add_bos,
        "expected": expected_tokens_hash(),
    }


def reference_key(name: str, experiment: Experiment, given: Fingerprints, device: str) -> Key:
    """Return the key of the full precision model's scores and hidden states on a protocol."""
    return {
        "version": SCORER_VERSION,
        "model": given["model"],
        "tokens": given[f"protocol/{name}"],
        "dtype": experiment.dtype,
        "batch_tokens": experiment.evaluation.batch_tokens,
        **computed_on(device),
    }


def protocol_key(name: str, experiment: Experiment, given: Fingerprints, device: str) -> Key:
    """Return the key of a protocol's token scores."""
    return {
        "version": SCORER_VERSION,
        "model": evaluated_key(experiment, given, device),
        "tokens": given[f"protocol/{name}"],
        "batch_tokens": experiment.evaluation.batch_tokens,
        "kl": experiment.needs_reference,
    }


def task_key(name: str, experiment: Experiment, given: Fingerprints, device: str) -> Key:
    """Return the key of a task's results.

    The data of a task of the hub is what the hub, or the local copy, gives at the time.
    """
    settings = experiment.evaluation
    return {
        "version": HARNESS_VERSION,
        "model": evaluated_key(experiment, given, device),
        "task": name,
        "data": _task_data(name),
        "tokenizer": given["tokenizer"],
        "libraries": _versions("datasets", "lm_eval", "tokenizers", "transformers"),
        "limit": experiment.n_documents(),
        "batch_tokens": settings.batch_tokens,
        "batch_size": settings.batch_size,
        "add_bos": settings.add_bos,
        "num_fewshot": settings.num_fewshot,
    }


def check_key(experiment: Experiment, given: Fingerprints, device: str) -> Key:
    """Return the key of what the gates need to know of the evaluated weights."""
    return {"version": CHECK_VERSION, "model": evaluated_key(experiment, given, device)}


def evaluated_key(experiment: Experiment, given: Fingerprints, device: str) -> Key:
    """Return the part of an evaluation's key that says which model is scored, and in which dtype."""
    if experiment.is_foreign:  # its files are all that counts, whoever made them of whatever
        checkpoint = {"version": PACKED_VERSION, "fingerprint": given["checkpoint"]}
        parent = {"model": given["model"], "dtype": experiment.dtype}
        return {**parent, "checkpoint": checkpoint, **computed_on(device)}
    key: Key = _rotation(experiment) | {
        "model": given["model"],
        "quant": quant_identity(experiment),
        "quantization_version": QUANTIZATION_VERSION if experiment.quantizes else None,
        "dtype": experiment.dtype,
        **computed_on(device),
    }
    if experiment.method.revisions:
        key["revisions"] = experiment.method.revisions
    if experiment.needs_calibration:
        settings = calibration_identity(experiment)
        key["calibration"] = given["calibration"]
        if experiment.adapted_on is not None:
            key["adapted_on"] = given[f"protocol/{experiment.adapted_on}"]
        key["calibration_settings"] = {k: settings[k] for k in ("tokens", "dtype", "batch_size")}
    return key


def computed_on(device: str) -> Key:
    """Return the part of a key that every forward depends on: the kind of device, and what runs there."""
    return {"device": device, "torch": torch.__version__, "transformers": library_version("transformers")}


def _rotation(experiment: Experiment) -> Key:
    """Return the part of a key that says in which basis the model is; nothing for that of most methods."""
    quant = experiment.quant
    if experiment.method["rotate"].is_idle:
        return {}
    return {"rotation": [ROTATION_VERSION, quant.rotate, quant.rotation.model_dump(mode="json")]}


def _task_data(name: str) -> object:
    return packaged_data_place()[1] if name in task_names() else None


def _versions(*libraries: str) -> dict[str, str]:
    return {name: library_version(name) for name in libraries}
