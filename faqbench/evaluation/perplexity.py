"""Negative log-likelihoods per token, and the perplexity made from them.

    nll[w, t] = -log softmax(float32(logits[w, t]))[tokens[w, t + 1]]        in nats

The [batch, seq_len, vocabulary] logits of a large vocabulary are the largest tensor of an
evaluation, so they never exist at once: the decoder gives hidden states, and the output head is
applied to a few hundred positions at a time. What a model does after its head (Gemma's soft cap) is
checked on eight tokens against the model's own forward; a model that does something else is scored
through that forward, one window at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from faqbench.config import UserError
from faqbench.evaluation.protocols import Protocol
from faqbench.records import Metric
from faqbench.stages import Progress
from faqbench.statistics import perplexity_with_stderr

SCORER_VERSION = 1
_LOGITS_BYTES = 128 * 2**20
_N_CHECKED = 8


def score_tokens(
    model: Any,
    tokens: torch.Tensor,
    batch_size: int,
    progress: Progress,
    title: str = "perplexity",
) -> NDArray[np.float32]:
    """Score every token of every window but its first.

    Args:
        model: a causal language model of transformers, in any dtype, on one device.
        tokens: [n_windows, seq_len] int64.
        batch_size: windows per forward; it changes speed, and results by rounding only.
        progress: advanced by one step per window.
        title: what the progress is called.

    Returns:
        [n_windows, seq_len - 1] in nats.

    Raises:
        UserError: when a window is longer than the model's context.
    """
    n_windows, seq_len = tokens.shape
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and seq_len > context:
        raise UserError(
            f"Windows of {seq_len} tokens do not fit the model's context of {context}; choose a "
            "protocol with a shorter window."
        )
    device = next(model.parameters()).device
    nll = torch.empty(n_windows, seq_len - 1, device=device)
    with torch.inference_mode(), progress.stage(title, n_windows) as advance:
        in_chunks = _head_is_all(model, tokens[:1, :_N_CHECKED].to(device))
        rows = batch_size if in_chunks else 1
        for start in range(0, n_windows, rows):
            batch = tokens[start : start + rows].to(device)
            score = _score_in_chunks if in_chunks else _score_whole
            nll[start : start + rows] = score(model, batch)
            advance(len(batch))
    return nll.cpu().numpy()


def perplexity_metrics(protocol: Protocol, nll: NDArray[np.floating[Any]]) -> tuple[Metric, ...]:
    """Return the perplexity of scored windows, its standard error taken over windows."""
    value, stderr = perplexity_with_stderr(nll)
    return (
        Metric(
            task=protocol.name,
            name="perplexity",
            value=value,
            stderr=stderr,
            n=nll.size,
            unit="perplexity",
            higher_is_better=False,
        ),
    )


def _score_in_chunks(model: Any, batch: torch.Tensor) -> torch.Tensor:
    hidden = _hidden_states(model, batch)[:, :-1]
    targets = batch[:, 1:].reshape(-1)
    rows = hidden.reshape(-1, hidden.shape[-1])
    n_rows = max(1, _LOGITS_BYTES // (4 * model.get_output_embeddings().weight.shape[0]))
    nll = [
        functional.cross_entropy(_head(model, some).float(), wanted, reduction="none")
        for some, wanted in zip(
            torch.split(rows, n_rows), torch.split(targets, n_rows), strict=True
        )
    ]
    return torch.cat(nll).view(batch.shape[0], -1)


def _score_whole(model: Any, batch: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
    return functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")


def _hidden_states(model: Any, batch: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = model.get_decoder()(input_ids=batch, use_cache=False).last_hidden_state
    return hidden


def _head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.get_output_embeddings()(hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _head_is_all(model: Any, tokens: torch.Tensor) -> bool:
    """Return whether decoder, head and soft cap together are the model's own forward."""
    if model.get_output_embeddings() is None or model.get_decoder() is None:
        return False
    whole = model(input_ids=tokens, use_cache=False).logits
    parts = _head(model, _hidden_states(model, tokens))
    return torch.allclose(whole, parts, rtol=1e-3, atol=1e-3, equal_nan=True)
