"""Negative log-likelihoods per token, divergence from full precision, and the metrics made from them.

    nll[w, t] = -log p[w, t](tokens[w, t + 1])                       in nats
    kl[w, t]  = sum over v of r(v) (log r(v) - log p(v))             in nats, r the reference at [w, t]
    agrees[w, t] = whether p and r have the same most likely token

with log p the float32 log-softmax of the logits. The reference is the full precision model in the same
dtype, as its hidden states (`reference.py`): quantizers leave the output head alone, so one head turns
both into logits, some hundred rows at a time, and no second model is in memory.

A model that does more after its head than `head.py` knows is scored through its own forward, one window
at a time, and has no divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from faqbench.config import UserError
from faqbench.evaluation.head import (
    decoded,
    decoded_together,
    log_probabilities,
    splits,
    top_token,
)
from faqbench.evaluation.protocols import Protocol
from faqbench.evaluation.reference import Beside, HiddenStates, HiddenWriter
from faqbench.models import Model, device_of
from faqbench.records import Metric
from faqbench.stages import Progress
from faqbench.statistics import mean_with_stderr, perplexity_with_stderr

SCORER_VERSION = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenScores:
    """Scores of every token of every window but its first, each [n_windows, seq_len - 1].

    Attributes:
        nll: float32, nats.
        kl: float32, nats, never negative; None without a reference.
        agrees: uint8, 1 where the most likely tokens are the same; None without a reference.
    """

    nll: NDArray[np.float32]
    kl: NDArray[np.float32] | None = None
    agrees: NDArray[np.uint8] | None = None


@torch.no_grad()
def score_tokens(
    model: Any,
    tokens: torch.Tensor,
    batch_tokens: int,
    progress: Progress,
    title: str = "perplexity",
    *,
    reference: HiddenStates | Beside | None = None,
    keep: HiddenWriter | None = None,
    view: Model | None = None,
) -> TokenScores:
    """Score every token of every window but its first.

    Args:
        model: a causal language model of transformers, in any dtype, on one device.
        tokens: [n_windows, seq_len] int64.
        batch_tokens: tokens per forward, at least one window's; it changes speed, and results by
            rounding only.
        progress: advanced by one step per window.
        title: what the progress is called.
        reference: hidden states of the full precision model on the same windows, or that model.
        keep: where to write this model's hidden states, as a later reference.
        view: the model as a view, where it may be streamed.

    Raises:
        UserError: when a window is longer than the model's context, and when a reference is given or
            wanted for a model that has no hidden states to compare.
    """
    n_windows, seq_len = tokens.shape
    check_context(getattr(model.config.get_text_config(), "max_position_embeddings", None), seq_len)
    device = device_of(model)
    in_parts = splits(model, tokens[:1].to(device))
    if not in_parts and (reference is not None or keep is not None):
        raise UserError(
            "KL divergence needs a model whose logits are its output head's; this one does more: set "
            "evaluation.kl=false."
        )
    rows = max(1, batch_tokens // seq_len) if in_parts else 1
    batches = torch.split(tokens, rows)
    found: list[tuple[torch.Tensor, ...]] = []
    with progress.stage(title, n_windows) as advance:
        if in_parts:
            for part, hidden, wanted in _hidden_states(model, batches, reference, view):
                if keep is not None:
                    keep.append(hidden)
                found.append(_score_in_parts(model, part.to(device), hidden, wanted))
                advance(len(part))
        else:
            for batch in batches:
                found.append(_score_whole(model, batch.to(device)))
                advance(len(batch))
    arrays = [
        torch.cat(parts).view(n_windows, seq_len - 1).cpu() for parts in zip(*found, strict=True)
    ]
    nll, kl, agrees = (arrays[i].numpy() if i < len(arrays) else None for i in range(3))
    assert nll is not None
    return TokenScores(nll=nll, kl=kl, agrees=agrees)


def perplexity_metrics(protocol: Protocol, scores: TokenScores) -> tuple[Metric, ...]:
    """Return perplexity, and divergence where there is a reference; standard errors over windows."""

    def metric(name: str, value: tuple[float, float], unit: str, *, higher: bool) -> Metric:
        return Metric(
            task=protocol.name,
            name=name,
            value=value[0],
            stderr=value[1],
            n=scores.nll.size,
            unit=unit,
            higher_is_better=higher,
        )

    perplexity = perplexity_with_stderr(scores.nll)
    metrics = [metric("perplexity", perplexity, "perplexity", higher=False)]
    if scores.kl is not None and scores.agrees is not None:
        kl, agreement = mean_with_stderr(scores.kl), mean_with_stderr(scores.agrees)
        metrics.append(metric("kl_divergence", kl, "nats", higher=False))
        metrics.append(metric("top1_agreement", agreement, "ratio", higher=True))
    return tuple(metrics)


def check_context(context: int | None, seq_len: int) -> None:
    """Refuse windows that are longer than a model's context.

    Args:
        context: tokens that the model can look at; None where it does not say.
        seq_len: tokens of a window.

    Raises:
        UserError: with both numbers.
    """
    if context is not None and seq_len > context:
        raise UserError(
            f"Windows of {seq_len} tokens do not fit the model's context of {context}; choose a "
            "protocol with a shorter window."
        )


def _on_device(batch: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
    return {"tokens": batch.to(device)}


def _hidden_states(
    model: Any,
    batches: Sequence[torch.Tensor],
    reference: HiddenStates | Beside | None,
    view: Model | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Yield each batch with its scored rows of hidden states, and the reference's where there is one."""
    device = device_of(model)
    inputs = [partial(_on_device, batch, device) for batch in batches]
    if isinstance(reference, Beside):
        assert view is not None, "a model that another one walks beside is a view"
        both = decoded_together([view, reference.view], inputs)
        for batch, (hidden, other) in zip(batches, both, strict=True):
            wanted = _scored(other)
            yield (
                batch,
                _scored(hidden),
                wanted if reference.rotate is None else reference.rotate(wanted),
            )
        return
    start = 0
    for batch, hidden in zip(batches, decoded(model, inputs, view), strict=True):
        known = None if reference is None else reference.read(start, len(batch), device)
        yield batch, _scored(hidden), known
        start += len(batch)


def _scored(hidden: torch.Tensor) -> torch.Tensor:
    """Return the rows of windows that predict a token of them."""
    return hidden[:, :-1].flatten(0, 1)


def _score_in_parts(
    model: Any, batch: torch.Tensor, hidden: torch.Tensor, wanted: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """Return flat nll of a batch of windows, and kl and agrees where the reference's rows are given."""
    targets = batch[:, 1:].flatten()
    of_p = log_probabilities(model, hidden)
    if wanted is None:
        return (torch.cat([_nll(log_p, targets[rows]) for rows, log_p in of_p]),)
    of_r = log_probabilities(model, wanted)
    scores = [
        (_nll(log_p, targets[rows]), *_divergence(log_p, log_r))
        for (rows, log_p), (_, log_r) in zip(of_p, of_r, strict=True)
    ]
    return tuple(torch.cat(parts) for parts in zip(*scores, strict=True))


def _nll(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -log_p.gather(1, targets[:, None])[:, 0]


def _divergence(log_p: torch.Tensor, log_r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the KL divergence of each row from the reference, and whether their top tokens agree."""
    kl = functional.kl_div(log_p, log_r, reduction="none", log_target=True).sum(-1)
    agrees = (top_token(log_p) == top_token(log_r)).to(torch.uint8)
    # Rounding alone can put the divergence of two equal distributions a hair below zero.
    return kl.clamp_min_(0.0), agrees


def _score_whole(model: Any, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
    return (functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none"),)
