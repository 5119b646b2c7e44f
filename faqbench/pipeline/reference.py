"""The cached stage that quantized models are compared with: the full precision model's hidden states.

Quantizing replaces weights in place, so the stage runs before it, once per weights, tokens and dtype; every
other cell of a sweep finds it in the cache, and the baseline takes its own perplexity from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as cache_calls
from functools import partial
from pathlib import Path
from typing import Any

import torch

from faqbench.config import Experiment
from faqbench.evaluation import (
    SCORER_VERSION,
    HiddenWriter,
    ProtocolTokens,
    protocol_tokens,
    resolve_protocol,
)
from faqbench.models import LoadedModel, cast_parameters
from faqbench.pipeline.memory import PeakMemory
from faqbench.pipeline.token_scores import write_scores
from faqbench.stages import CacheEntry, Progress, StageCache


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The full precision model on one protocol.

    Attributes:
        windows: the protocol's tokens.
        entry: the stage's folder, with `nll.npy` and what `HiddenStates.open` reads.
    """

    windows: ProtocolTokens
    entry: CacheEntry


def reference_scores(
    experiment: Experiment,
    loaded: LoadedModel,
    memory: PeakMemory,
    cache: StageCache,
    progress: Progress,
) -> dict[str, Reference]:
    """Return the full precision model's scores and hidden states per protocol.

    Args:
        experiment: what to evaluate.
        loaded: the model as it was loaded, not yet quantized; the baseline's is put into its dtype.
        memory: of the run.
        cache: where the stage is kept and found.
        progress: told of the stage.

    Raises:
        UserError: for a protocol whose text or windows cannot be had.
    """
    dtype = getattr(torch, experiment.dtype)

    @cache_calls
    def in_dtype() -> Any:
        # The baseline has no other use of its weights as they were loaded.
        cast = _copy_in_dtype if experiment.quantizes else cast_parameters
        return cast(loaded.model, dtype)

    references = {}
    for name in experiment.evaluation.protocols:
        protocol = resolve_protocol(name, experiment)
        windows = protocol_tokens(protocol, loaded.tokenizer, experiment, progress)
        build = partial(_write, windows, in_dtype, experiment, memory, progress)
        key = reference_key(experiment, loaded, windows.fingerprint)
        references[name] = Reference(windows=windows, entry=cache.get("reference", key, build))
    return references


def reference_key(experiment: Experiment, loaded: LoadedModel, tokens: str) -> dict[str, object]:
    """Return what the stage depends on.

    Args:
        experiment: its dtype and budget per forward.
        loaded: its weights, by their fingerprint, and its device.
        tokens: the fingerprint of the protocol's windows.
    """
    return {
        "version": SCORER_VERSION,
        "weights": loaded.fingerprint,
        "tokens": tokens,
        "dtype": experiment.dtype,
        "device": next(loaded.model.parameters()).device.type,
        "batch_tokens": experiment.evaluation.batch_tokens,
    }


def _write(
    windows: ProtocolTokens,
    in_dtype: Callable[[], Any],
    experiment: Experiment,
    memory: PeakMemory,
    progress: Progress,
    folder: Path,
) -> None:
    model = in_dtype()
    title = f"{windows.protocol.name}: full precision"
    budget = experiment.evaluation.batch_tokens
    with HiddenWriter(folder, windows.protocol.seq_len) as keep:
        write_scores(folder, model, windows, budget, memory, progress, title, keep=keep)


def _copy_in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """Return a model in another dtype; its weights are cast as they are copied, never held twice."""
    if all(p.dtype == dtype for p in model.parameters()):
        return model
    memo: dict[int, Any] = {
        id(p): torch.nn.Parameter(p.detach().to(dtype), requires_grad=False)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)
