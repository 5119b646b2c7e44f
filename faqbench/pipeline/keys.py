"""The key of every stage: what its result depends on, and the version of the code that makes it.

Every key is made of an experiment, of what the stages that it needs have given, and of the kind of device,
never of a model in memory, so that a plan can look stages up without loading anything. Keys of parts of a
cell (a protocol, a task, a set of tokens) are told its name.

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

A model is its weights and all else that its forward depends on (`models.loading`). Whatever runs a
forward also has the kind of device, torch and transformers in its key. A key is None where that on which
it depends has no version that is known: then the stage is made anew, and kept nowhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property

import torch

from faqbench.assets import packaged_data_key
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
from faqbench.quantization import CHECKPOINT_VERSION
from faqbench.quantization import CODE_VERSION as QUANTIZATION_VERSION
from faqbench.quantization.activations import CODE_VERSION as STATISTICS_VERSION
from faqbench.quantization.activations import MEANS_VERSION
from faqbench.stages import library_version

Key = dict[str, object]
Fingerprints = Mapping[str, str]

WEIGHTS_VERSION = 3  # raise it when a fingerprint or the facts beside it change
TOKENIZER_VERSION = 1  # raise it when `fingerprint_tokenizer` tells other tokenizers apart
DISTANCE_VERSION = 2  # raise it when the same sets would be at another distance
REPORTS_VERSION = 1  # raise it when the same checkpoint would be reported otherwise
CHECK_VERSION = 2  # raise it when the same weights would be found otherwise


class Keys:
    """The keys of the stages of one cell."""

    def __init__(self, experiment: Experiment, given: Fingerprints, device: str = "") -> None:
        """Take what the keys are made of.

        Args:
            experiment: of the cell.
            given: the fingerprints that stages have given, and `entry/<id>`; more may come meanwhile.
            device: the kind of device; none for keys that no forward depends on.
        """
        self.experiment = experiment
        self.given = given
        self.device = device

    def weights(self) -> Key | None:
        """Return the key of what is known of the weights; None when their source is not on this machine."""
        source = weights_source(self.experiment.model)
        if source is None:
            return None
        return {
            "version": WEIGHTS_VERSION,
            "source": source,
            "dtype": self.experiment.calibration.dtype,
            # They also choose the attention implementation, which is a part of the model's fingerprint.
            "libraries": _versions("torch", "transformers"),
        }

    def tokenizer(self) -> Key | None:
        """Return the key of a tokenizer's fingerprint; None when its source is not on this machine."""
        source = tokenizer_source(self.experiment.model)
        if source is None:
            return None
        libraries = _versions("tokenizers", "transformers")
        return {"version": TOKENIZER_VERSION, "source": source, "libraries": libraries}

    def overlap(self, name: str) -> Key | None:
        """Return the key of the text that an evaluation shares with the calibration set.

        A task of the hub is known by its name, so that a finished cell does not ask the hub again.
        """
        if "entry/calibration" not in self.given:  # its texts have no version
            return None
        drawn = self.given["entry/calibration"]
        key: Key = {"version": OVERLAP_VERSION, "calibration": drawn, "evaluation": name}
        if name in self.experiment.evaluation.tasks:
            key |= {"data": _task_data(name), "limit": self.experiment.n_documents()}
            return key
        text = text_source(resolve_protocol(name, self.experiment.data), self.experiment.data)
        return None if text is None else key | {"text": text}

    def statistics(self) -> Key:
        """Return the key of the activation statistics.

        They depend on the model, the tokens, how tokens count and the batch size (by rounding); not on
        bits, window, gamma or any other choice of a quantizer, so one pass serves a whole sweep.
        """
        settings = self.experiment.calibration
        return self._rotation() | {
            "version": STATISTICS_VERSION,
            "model": self.given["model"],
            "tokens": self.given["calibration"],
            "select": settings.tokens,
            "batch_size": settings.batch_size,
            **computed_on(self.device),
        }

    def means(self, tokens: str) -> Key:
        """Return the key of mean|x| on a set of tokens, `calibration` or `reference_set`."""
        return {"version": MEANS_VERSION, "tokens": self.given[tokens], **self._pass()}

    def distance(self) -> Key:
        """Return the key of the distance of a calibration set from the reference set."""
        return {
            "version": DISTANCE_VERSION,
            "means_version": MEANS_VERSION,
            "tokens": self.given["calibration"],
            "reference": self.given["reference_set"],
            **self._pass(),
        }

    def _pass(self) -> Key:
        """Return the part of a key that a full precision pass depends on, its tokens left out."""
        settings = self.experiment.calibration
        return {
            "model": self.given["model"],
            "select": settings.tokens,
            "dtype": settings.dtype,
            "batch_size": settings.batch_size,
            **computed_on(self.device),
        }

    def quantized(self) -> Key:
        """Return the key of the quantized weights, and of the reports that come with them."""
        key = self.evaluated()
        del key["dtype"]
        key["files"] = CHECKPOINT_VERSION
        key["trace_windows"] = (
            self.experiment.quant.trace_windows if self.experiment.needs_calibration else 0
        )
        return key

    def reports(self) -> Key:
        """Return the key of the reports of a checkpoint that another tool made."""
        return {
            "version": REPORTS_VERSION,
            "files": PACKED_VERSION,
            "checkpoint": self.given["checkpoint"],
            "parent": self.given["model"],
        }

    def windows(self, name: str) -> Key | None:
        """Return the key of a protocol's windows, or None when its text or tokenizer has no version."""
        protocol = resolve_protocol(name, self.experiment.data)
        text = text_source(protocol, self.experiment.data)
        tokenizer = tokenizer_source(self.experiment.model)
        if text is None or tokenizer is None:
            return None
        return {
            "protocol": asdict(protocol),
            "text": text,
            "tokenizer": tokenizer,
            "libraries": _versions("tokenizers", "transformers"),
            "n_windows": self.experiment.n_windows(),
            "add_bos": self.experiment.evaluation.add_bos,
            "expected": expected_tokens_hash(),
        }

    def reference(self, name: str) -> Key:
        """Return the key of the full precision model's scores and hidden states on a protocol."""
        return {
            "version": SCORER_VERSION,
            "model": self.given["model"],
            "tokens": self.given[f"protocol/{name}"],
            "dtype": self.experiment.dtype,
            "batch_tokens": self.experiment.evaluation.batch_tokens,
            **computed_on(self.device),
        }

    def protocol(self, name: str) -> Key:
        """Return the key of a protocol's token scores."""
        return {
            "version": SCORER_VERSION,
            "model": self.evaluated(),
            "tokens": self.given[f"protocol/{name}"],
            "batch_tokens": self.experiment.evaluation.batch_tokens,
            "kl": self.experiment.needs_reference,
        }

    def task(self, name: str) -> Key:
        """Return the key of a task's results.

        The data of a task of the hub is what the hub, or the local copy, gives at the time.
        """
        settings = self.experiment.evaluation
        return {
            "version": HARNESS_VERSION,
            "model": self.evaluated(),
            "task": name,
            "data": _task_data(name),
            "tokenizer": self.given["tokenizer"],
            "libraries": _versions("datasets", "lm_eval", "tokenizers", "transformers"),
            "limit": self.experiment.n_documents(),
            "batch_tokens": settings.batch_tokens,
            "batch_size": settings.batch_size,
            "add_bos": settings.add_bos,
            "num_fewshot": settings.num_fewshot,
        }

    def check(self) -> Key:
        """Return the key of what the gates need to know of the evaluated weights."""
        return {"version": CHECK_VERSION, "model": self.evaluated()}

    def evaluated(self) -> Key:
        """Return the part of an evaluation's key that says which model is scored, and in which dtype."""
        if self.experiment.is_foreign:  # its files are all that counts, whoever made them of whatever
            checkpoint = {"version": PACKED_VERSION, "fingerprint": self.given["checkpoint"]}
            parent = {"model": self.given["model"], "dtype": self.experiment.dtype}
            return {**parent, "checkpoint": checkpoint, **computed_on(self.device)}
        key: Key = self._rotation() | {
            "model": self.given["model"],
            "quant": self._quant,
            "quantization_version": QUANTIZATION_VERSION if self.experiment.quantizes else None,
            "dtype": self.experiment.dtype,
            **computed_on(self.device),
        }
        if self.experiment.method.revisions:
            key["revisions"] = self.experiment.method.revisions
        if self.experiment.needs_calibration:
            settings = calibration_identity(self.experiment)
            key["calibration"] = self.given["calibration"]
            if self.experiment.adapted_on is not None:
                key["adapted_on"] = self.given[f"protocol/{self.experiment.adapted_on}"]
            key["calibration_settings"] = {k: settings[k] for k in ("tokens", "dtype", "batch_size")}
        return key

    @cached_property
    def _quant(self) -> Key:
        return quant_identity(self.experiment)

    def _rotation(self) -> Key:
        """Return the part of a key that says in which basis the model is; nothing for most methods."""
        quant = self.experiment.quant
        if self.experiment.method["rotate"].is_idle:
            return {}
        return {"rotation": [ROTATION_VERSION, quant.rotate, quant.rotation.model_dump(mode="json")]}


def computed_on(device: str) -> Key:
    """Return the part of a key that every forward depends on: the kind of device, and what runs there."""
    return {"device": device, "torch": torch.__version__, "transformers": library_version("transformers")}


def _task_data(name: str) -> object:
    return packaged_data_key() if name in task_names() else None


def _versions(*libraries: str) -> dict[str, str]:
    return {name: library_version(name) for name in libraries}
