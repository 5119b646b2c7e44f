"""The key of every stage: what its result depends on, and the version of the code that makes it.

Keys are made from an experiment and the fingerprints of what came before, never from a model in memory,
so that a plan can look stages up without loading anything:

    weights        where they come from              -> fingerprints of the weights and of the model
    tokenizer      where it comes from               -> fingerprint of the tokenizer
    windows        a protocol's text, the tokenizer  -> fingerprint of the windows
    statistics     model, calibration tokens, how tokens count
    quantized      model, the method, calibration tokens
    reference      model, a protocol's tokens: what quantized models are compared with
    evaluated      the part of every evaluation's key that says which model is scored
    task           the same, the tokenizer, the task's data, and the versions of what reads them

A model is its weights and all else that its forward depends on (`models.forward`). Whatever runs a
forward also has the kind of device, torch and transformers in its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch

from faqbench.assets import packaged_data_place
from faqbench.config import Experiment
from faqbench.config.experiment import ModelSection
from faqbench.config.identity import calibration_identity, quant_identity
from faqbench.evaluation import (
    HARNESS_VERSION,
    SCORER_VERSION,
    expected_tokens_hash,
    resolve_protocol,
    task_names,
    text_source,
)
from faqbench.models import tokenizer_source, weights_source
from faqbench.quantization import CHECKPOINT_VERSION
from faqbench.quantization import CODE_VERSION as QUANTIZATION_VERSION
from faqbench.quantization.activations import CODE_VERSION as STATISTICS_VERSION
from faqbench.stages import library_version

WEIGHTS_VERSION = 3  # raise it when a fingerprint or the facts beside it change
TOKENIZER_VERSION = 1  # raise it when `fingerprint_tokenizer` tells other tokenizers apart
Key = dict[str, object]


def weights_key(experiment: Experiment) -> Key | None:
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


def tokenizer_key(section: ModelSection) -> Key | None:
    """Return the key of a tokenizer's fingerprint; None when its source is not on this machine."""
    source = tokenizer_source(section)
    if source is None:
        return None
    libraries = _versions("tokenizers", "transformers")
    return {"version": TOKENIZER_VERSION, "source": source, "libraries": libraries}


def statistics_key(experiment: Experiment, model: str, tokens: str, device: str) -> Key:
    """Return the key of the activation statistics.

    They depend on the model, the tokens, how tokens count and the batch size (by rounding); not on
    bits, window, gamma or any other choice of a quantizer, so one pass serves a whole sweep.

    Args:
        experiment: the cell.
        model: fingerprint of the model as loaded.
        tokens: fingerprint of the calibration tokens.
        device: cpu or cuda.
    """
    settings = experiment.calibration
    return {
        "version": STATISTICS_VERSION,
        "model": model,
        "tokens": tokens,
        "select": settings.tokens,
        "batch_size": settings.batch_size,
        **computed_on(device),
    }


def quantized_key(experiment: Experiment, fingerprints: Mapping[str, str], device: str) -> Key:
    """Return the key of the quantized weights, and of the reports that come with them.

    Args:
        experiment: a cell that quantizes.
        fingerprints: `model` and, for a method that reads activations, `calibration`.
        device: cpu or cuda.
    """
    key = evaluated_key(experiment, fingerprints, device)
    del key["dtype"]
    key["files"] = CHECKPOINT_VERSION
    key["trace_windows"] = experiment.quant.trace_windows if experiment.needs_calibration else 0
    return key


def reference_key(
    experiment: Experiment, fingerprints: Mapping[str, str], name: str, device: str
) -> Key:
    """Return the key of the full precision model's scores and hidden states on a protocol."""
    return {
        "version": SCORER_VERSION,
        "model": fingerprints["model"],
        "tokens": fingerprints[f"protocol/{name}"],
        "dtype": experiment.dtype,
        "batch_tokens": experiment.evaluation.batch_tokens,
        **computed_on(device),
    }


def windows_key(experiment: Experiment, section: ModelSection, name: str) -> Key | None:
    """Return the key of a protocol's windows, or None when its text or tokenizer has no known version.

    Args:
        experiment: the cell.
        section: its model, with the commit of a hub's.
        name: of the protocol.
    """
    protocol = resolve_protocol(name, experiment)
    text, tokenizer = text_source(protocol, experiment), tokenizer_source(section)
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


def protocol_key(
    experiment: Experiment, fingerprints: Mapping[str, str], name: str, device: str
) -> Key:
    """Return the key of a protocol's token scores; `fingerprints` has `protocol/<name>`."""
    return {
        "version": SCORER_VERSION,
        "model": evaluated_key(experiment, fingerprints, device),
        "tokens": fingerprints[f"protocol/{name}"],
        "batch_tokens": experiment.evaluation.batch_tokens,
        "kl": experiment.needs_reference,
    }


def task_key(
    experiment: Experiment, fingerprints: Mapping[str, str], name: str, device: str
) -> Key:
    """Return the key of a task's results; `fingerprints` has `tokenizer`.

    The data of a task of the hub is what the hub, or the local copy, gives at the time.
    """
    settings = experiment.evaluation
    return {
        "version": HARNESS_VERSION,
        "model": evaluated_key(experiment, fingerprints, device),
        "task": name,
        "data": packaged_data_place()[1] if name in task_names() else None,
        "tokenizer": fingerprints["tokenizer"],
        "libraries": _versions("datasets", "lm_eval", "tokenizers", "transformers"),
        "limit": experiment.n_documents(),
        "batch_tokens": settings.batch_tokens,
        "batch_size": settings.batch_size,
        "add_bos": settings.add_bos,
        "num_fewshot": settings.num_fewshot,
    }


def evaluated_key(experiment: Experiment, fingerprints: Mapping[str, str], device: str) -> Key:
    """Return the part of an evaluation's key that says which model is scored, and in which dtype."""
    key: Key = {
        "model": fingerprints["model"],
        "quant": quant_identity(experiment),
        "quantization_version": QUANTIZATION_VERSION if experiment.quantizes else None,
        "dtype": experiment.dtype,
        **computed_on(device),
    }
    if experiment.needs_calibration:
        settings = calibration_identity(experiment)
        key["calibration"] = fingerprints["calibration"]
        key["calibration_settings"] = {k: settings[k] for k in ("tokens", "dtype", "batch_size")}
    return key


def computed_on(device: str) -> Key:
    """Return the part of a key that every forward depends on: the kind of device, and what runs there."""
    return {
        "device": device,
        "torch": torch.__version__,
        "transformers": library_version("transformers"),
    }


def _versions(*libraries: str) -> dict[str, str]:
    return {name: library_version(name) for name in libraries}
