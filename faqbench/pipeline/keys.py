"""The key of every stage: what its result depends on, and the version of the code that makes it.

Keys are made from an experiment and the fingerprints of what came before, never from a model in memory,
so that a plan can look stages up without loading anything:

    weights        where they come from              -> fingerprint of the weights
    windows        a protocol's text, the tokenizer  -> fingerprint of the windows
    statistics     weights, calibration tokens, how tokens count
    quantized      weights, the method, calibration tokens
    reference      weights, a protocol's tokens: what quantized models are compared with
    evaluated      the part of every evaluation's key that says which weights are scored
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import torch

from faqbench.config import Experiment
from faqbench.config.experiment import ModelSection
from faqbench.config.identity import calibration_identity, quant_identity
from faqbench.evaluation import (
    HARNESS_VERSION,
    SCORER_VERSION,
    expected_tokens_hash,
    resolve_protocol,
    text_source,
)
from faqbench.models import tokenizer_source, weights_source
from faqbench.quantization import CHECKPOINT_VERSION
from faqbench.quantization import CODE_VERSION as QUANTIZATION_VERSION
from faqbench.quantization.activations import CODE_VERSION as STATISTICS_VERSION
from faqbench.stages import library_version

WEIGHTS_VERSION = 2  # raise it when a fingerprint or the facts beside it change
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
        "transformers": library_version("transformers"),
    }


def statistics_key(experiment: Experiment, weights: str, tokens: str, device: str) -> Key:
    """Return the key of the activation statistics.

    They depend on the weights, the tokens, how tokens count and the batch size (by rounding); not on
    bits, window, gamma or any other choice of a quantizer, so one pass serves a whole sweep.

    Args:
        experiment: the cell.
        weights: fingerprint of the weights as loaded.
        tokens: fingerprint of the calibration tokens.
        device: cpu or cuda.
    """
    settings = experiment.calibration
    return {
        "version": STATISTICS_VERSION,
        "weights": weights,
        "tokens": tokens,
        "select": settings.tokens,
        "batch_size": settings.batch_size,
        "device": device,
        "torch": torch.__version__,
    }


def quantized_key(experiment: Experiment, fingerprints: Mapping[str, str], device: str) -> Key:
    """Return the key of the quantized weights, and of the reports that come with them.

    Args:
        experiment: a cell that quantizes.
        fingerprints: `weights` and, for a method that reads activations, `calibration`.
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
        "weights": fingerprints["weights"],
        "tokens": fingerprints[f"protocol/{name}"],
        "dtype": experiment.dtype,
        "device": device,
        "batch_tokens": experiment.evaluation.batch_tokens,
        "torch": torch.__version__,
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
        "libraries": {lib: library_version(lib) for lib in ("tokenizers", "transformers")},
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
    """Return the key of a task's results."""
    settings = experiment.evaluation
    return {
        "version": HARNESS_VERSION,
        "model": evaluated_key(experiment, fingerprints, device),
        "task": name,
        "limit": experiment.n_documents(),
        "batch_tokens": settings.batch_tokens,
        "batch_size": settings.batch_size,
        "add_bos": settings.add_bos,
        "num_fewshot": settings.num_fewshot,
    }


def evaluated_key(experiment: Experiment, fingerprints: Mapping[str, str], device: str) -> Key:
    """Return the part of an evaluation's key that says which weights are scored, and in which dtype."""
    key: Key = {
        "weights": fingerprints["weights"],
        "quant": quant_identity(experiment),
        "quantization_version": QUANTIZATION_VERSION if experiment.quantizes else None,
        "dtype": experiment.dtype,
        "device": device,
        "torch": torch.__version__,
    }
    if experiment.needs_calibration:
        settings = calibration_identity(experiment)
        key["calibration"] = fingerprints["calibration"]
        key["calibration_settings"] = {k: settings[k] for k in ("tokens", "dtype", "batch_size")}
    return key
