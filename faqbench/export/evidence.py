"""What a verification compares a checkpoint with, on a machine that may not have the run.

    faqbench/evidence.safetensors
        tokens/prompt-<i>         int32 [n], a fixed prompt
        logits/prompt-<i>         float32 [last positions, vocabulary], of the measured model
        tokens/<protocol>         int32 [n_windows, seq_len], the first windows of a protocol of the run
        nll/<protocol>            float64 [n_windows], the run's mean loss of each of them, nats per token
        probe/<in_features>       int8 [in_features], signs that a weight is multiplied by
        probed/<linear>           float32 [out_features], the stored weight times the probe

Beside it, `facts.json` has a sha256 of every linear's stored weight in float32. Equal hashes are equal
weights; where they differ the probe says by how much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faqbench.config import Experiment, UserError
from faqbench.evaluation import protocol_tokens, resolve_protocol
from faqbench.models import Model, bos_of, encode
from faqbench.stages import Progress

_PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "Water boils at a temperature of",
    "Once upon a time there was a king who had three",
)
_N_POSITIONS = 4
_MOST_TOKENS = 4_096  # of each protocol: a quarter of a minute for a small model on two cores


@torch.no_grad()
def prompt_evidence(measured: Model, tokenizer: Any, experiment: Experiment) -> dict[str, Tensor]:
    """Return the fixed prompts, and the measured model's logits at their last positions."""
    bos = [bos_of(tokenizer, "evaluation.add_bos")] if experiment.evaluation.add_bos else []
    model, tensors = measured.fill().module, {}
    for index, text in enumerate(_PROMPTS):
        tokens = torch.tensor([bos + encode(tokenizer, text)])
        logits = model(input_ids=tokens.to(measured.device), use_cache=False).logits
        tensors[f"tokens/prompt-{index}"] = tokens[0].to(torch.int32)
        tensors[f"logits/prompt-{index}"] = logits[0, -_N_POSITIONS:].float().cpu().contiguous()
    return tensors


def protocol_evidence(
    scores: Mapping[str, NDArray[Any]],
    fingerprints: Mapping[str, str],
    tokenizer: Any,
    experiment: Experiment,
    progress: Progress,
) -> dict[str, Tensor]:
    """Return the first windows of each protocol of a run, and the losses that the run recorded there.

    Args:
        scores: of the run, by protocol: per token [n_windows, seq_len - 1], or per window.
        fingerprints: of the run.
        tokenizer: of the model.
        experiment: of the run.
        progress: told of the tokenising.

    Raises:
        UserError: when a protocol's text now gives other tokens than the run scored.
    """
    tensors = {}
    for name in experiment.evaluation.protocols:
        if name not in scores:
            continue  # a run that kept none
        windows = protocol_tokens(resolve_protocol(name, experiment.data), tokenizer, experiment, progress)
        if windows.fingerprint != fingerprints.get(f"protocol/{name}"):
            raise UserError(
                f"Protocol '{name}' gives other tokens than the run scored, so the export could not be "
                "verified; run the cell again with rerun=true."
            )
        n_windows = max(1, _MOST_TOKENS // windows.protocol.seq_len)
        losses = np.asarray(scores[name][:n_windows], dtype=np.float64)
        losses = losses.reshape(len(losses), -1).mean(axis=1)
        tensors[f"tokens/{name}"] = windows.tokens[:n_windows].to(torch.int32).contiguous()
        tensors[f"nll/{name}"] = torch.from_numpy(losses)
    return tensors


def probe(n_columns: int) -> Tensor:
    """Return the signs [n_columns] that weights of that width are multiplied by."""
    return torch.from_numpy(np.random.default_rng(n_columns).choice([-1, 1], n_columns)).to(torch.int8)


def hash_weight(weight: Tensor) -> str:
    """Return the sha256 of a weight's numbers in float32, row by row."""
    return hashlib.sha256(weight.float().cpu().contiguous().numpy().tobytes()).hexdigest()
