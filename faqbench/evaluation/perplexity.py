"""Negative log-likelihoods per token, divergence from full precision, and the metrics made from them.

    nll[w, t] = -log p[w, t](tokens[w, t + 1])                       in nats
    kl[w, t]  = sum over v of r(v) (log r(v) - log p(v))             in nats, r the reference at [w, t]
    agrees[w, t] = whether p and r have the same most likely token

with log p the float32 log-softmax of the logits. The reference is the full precision model in the same
dtype, as its hidden states (`HiddenStates`): quantizers leave the output head alone, so one head turns
both into logits, some hundred rows at a time, and no second model is in memory.

A model that does more after its head than `head.py` knows is scored through its own forward, one window
at a time, and has no divergence.

What a quantized model is compared with is kept after the last norm, in the evaluation's dtype: hidden_size
numbers per token instead of a vocabulary's. They are written and read some windows at a time, so that
neither side holds them all. Of a streamed model they would take more than the model's memory, and it reads
its blocks anew for every cell in any case: there the full precision model walks beside the quantized one.

    hidden.raw     [n_windows, seq_len - 1, hidden_size], little endian, rows one after the other
    hidden.json    dtype and shape
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from typing_extensions import TypedDict

from faqbench.config import UserError
from faqbench.evaluation.head import answer, log_probabilities, splits, top_token
from faqbench.evaluation.protocols import Protocol
from faqbench.foreign import read_as
from faqbench.models import Inputs, Model, device_of
from faqbench.records import Metric
from faqbench.stages import Progress
from faqbench.stages.cache import Advance
from faqbench.statistics import mean_with_stderr, perplexity_with_stderr

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class HiddenWriter:
    """Writes hidden states into a folder as they are computed; a context manager."""

    def __init__(self, folder: Path, seq_len: int) -> None:
        self._folder = folder
        self._seq_len = seq_len
        self._n_rows = 0
        self._dtype, self._width = "", 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> HiddenWriter:
        """Open the file."""
        self._file = (self._folder / "hidden.raw").open("wb")
        return self

    def append(self, hidden: torch.Tensor) -> None:
        """Write the next rows, [n, hidden_size]; a window has seq_len - 1 of them."""
        assert self._file is not None
        self._dtype, self._width = str(hidden.dtype), hidden.shape[1]
        self._n_rows += len(hidden)
        self._file.write(hidden.contiguous().cpu().view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file, and describe it when it is whole."""
        assert self._file is not None
        self._file.close()
        if kind is None:
            shape = [self._n_rows // (self._seq_len - 1), self._seq_len - 1, self._width]
            about = {"dtype": self._dtype, "shape": shape}
            (self._folder / "hidden.json").write_text(json.dumps(about))


class _About(TypedDict):
    dtype: str
    shape: tuple[int, int, int]


# Turns hidden states into what the head of the model that is compared takes; None where that is the head of
# the full precision model.
Rotate = Callable[[torch.Tensor], torch.Tensor] | None


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The full precision model, which walks beside the one that is compared with it.

    Attributes:
        view: in the evaluation's dtype.
        rotate: see above.
    """

    view: Model
    rotate: Rotate = None


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """Hidden states on disk.

    Attributes:
        path: of `hidden.raw`.
        dtype: of the numbers.
        shape: windows, scored tokens of a window, hidden_size.
        rotate: see above.
    """

    path: Path
    dtype: torch.dtype
    shape: tuple[int, int, int]
    rotate: Rotate = None

    @classmethod
    def open(cls, folder: Path, rotate: Rotate = None) -> HiddenStates:
        """Return what a `HiddenWriter` left in a folder.

        Raises:
            ValueError: when it did not.
        """
        about = read_as(folder / "hidden.json", _About)
        return cls(
            path=folder / "hidden.raw", dtype=_DTYPES[about["dtype"]], shape=about["shape"], rotate=rotate
        )

    def read(self, start: int, n_windows: int, device: torch.device) -> torch.Tensor:
        """Return the rows of some windows, [n_windows * n_tokens, hidden_size]."""
        _, n_tokens, width = self.shape
        n_bytes = n_tokens * width * self.dtype.itemsize
        count = n_windows * n_bytes
        raw = np.fromfile(self.path, dtype=np.uint8, count=count, offset=start * n_bytes)
        assert len(raw) == count, f"{self.path} ends before window {start + n_windows}"
        hidden = torch.from_numpy(raw).view(self.dtype).view(-1, width).to(device)
        return hidden if self.rotate is None else self.rotate(hidden)


SCORER_VERSION = 5


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
    check_windows(model, tokens)
    in_parts = splits(model if view is None else view)
    if not in_parts and (reference is not None or keep is not None):
        raise UserError(
            "KL divergence needs a model whose logits are its output head's; this one does more: set "
            "evaluation.kl=false."
        )
    with progress.activity(title, len(tokens)) as advance:
        if not in_parts:
            return _score_whole(model, tokens, advance)
        views = [model if view is None else view]
        windows = Windows(
            views, tokens, batch_tokens, model, reference=reference, keep=keep, advance=advance
        )
        answer([windows])
    (scores,) = windows.scores()
    return scores


class Windows:
    """The question that `score_tokens` asks, of one or several models that share a head.

    Attributes:
        views: whose windows are scored; a reference that walks beside them is the last.
        inputs: see `Question`.
    """

    def __init__(
        self,
        views: Sequence[Any],
        tokens: torch.Tensor,
        batch_tokens: int,
        model: Any,
        *,
        reference: HiddenStates | Beside | None = None,
        keep: HiddenWriter | None = None,
        advance: Advance = lambda _=1: None,
    ) -> None:
        """Cut the windows into batches; `model` has the head, the rest is as for `score_tokens`."""
        self._model = model
        self._tokens = tokens
        self._device = device_of(self._model)
        self._batches = torch.split(tokens, max(1, batch_tokens // tokens.shape[1]))
        self._reference, self._keep, self._advance = reference, keep, advance
        self._found: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in views]
        self._n_read = 0
        beside = [reference.view] if isinstance(reference, Beside) else []
        self.views: Sequence[Any] = [*views, *beside]
        self.inputs: Sequence[Inputs] = [
            partial(_on_device, batch, self._device) for batch in self._batches
        ]

    def take(self, number: int, hidden: Sequence[torch.Tensor]) -> None:
        """Score a batch of windows."""
        batch = self._batches[number].to(self._device)
        rows = [_scored(states) for states in hidden]
        if self._keep is not None:
            self._keep.append(rows[0])
        wanted = self._wanted(len(batch), rows[len(self._found) :])
        found = _score_in_parts(self._model, batch, rows[: len(self._found)], wanted)
        for of_model, scores in zip(self._found, found, strict=True):
            of_model.append(scores)
        self._advance(len(batch))

    def scores(self) -> list[TokenScores]:
        """Return the scores of each model, once all inputs are taken."""
        return [_as_scores(found, self._tokens) for found in self._found]

    def _wanted(self, n_windows: int, beside: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Return the reference's rows of the next windows."""
        if isinstance(self._reference, HiddenStates):
            self._n_read += n_windows
            return self._reference.read(self._n_read - n_windows, n_windows, self._device)
        if not isinstance(self._reference, Beside):
            return None
        rotate, (rows,) = self._reference.rotate, beside
        return rows if rotate is None else rotate(rows)


def _as_scores(found: Sequence[tuple[torch.Tensor, ...]], tokens: torch.Tensor) -> TokenScores:
    n_windows, seq_len = tokens.shape
    arrays = [torch.cat(parts).view(n_windows, seq_len - 1).cpu() for parts in zip(*found, strict=True)]
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


def check_windows(model: Any, tokens: torch.Tensor) -> None:
    """Refuse windows [n_windows, seq_len] that are longer than a model's context.

    Raises:
        UserError: with both numbers.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    check_context(context, tokens.shape[1])


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


def _scored(hidden: torch.Tensor) -> torch.Tensor:
    """Return the rows of windows that predict a token of them."""
    return hidden[:, :-1].flatten(0, 1)


def _score_in_parts(
    model: Any, batch: torch.Tensor, hidden: Sequence[torch.Tensor], wanted: torch.Tensor | None
) -> list[tuple[torch.Tensor, ...]]:
    """Return, for each model's rows, flat nll of a batch of windows, and kl and agrees where asked for.

    Args:
        model: whose head all of them have.
        batch: [n, seq_len].
        hidden: of each model, [n * (seq_len - 1), hidden_size].
        wanted: the reference's; None where there is none.
    """
    targets = batch[:, 1:].flatten()
    of_r = repeat(None) if wanted is None else log_probabilities(model, wanted)
    scores: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in hidden]
    of_models = [log_probabilities(model, rows) for rows in hidden]
    for r, *of_p in zip(of_r, *of_models, strict=False):
        for of_model, (rows, log_p) in zip(scores, of_p, strict=True):
            more = () if r is None else _divergence(log_p, r[1])
            of_model.append((_nll(log_p, targets[rows]), *more))
    return [tuple(torch.cat(parts) for parts in zip(*of_model, strict=True)) for of_model in scores]


def _nll(log_p: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -log_p.gather(1, targets[:, None])[:, 0]


def _divergence(log_p: torch.Tensor, log_r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the KL divergence of each row from the reference, and whether their top tokens agree."""
    kl = functional.kl_div(log_p, log_r, reduction="none", log_target=True).sum(-1)
    agrees = (top_token(log_p) == top_token(log_r)).to(torch.uint8)
    # Rounding alone can put the divergence of two equal distributions a hair below zero.
    return kl.clamp_min_(0.0), agrees


def _score_whole(model: Any, tokens: torch.Tensor, advance: Advance) -> TokenScores:
    """Score windows by a model's own forward, one at a time."""
    found = []
    with torch.no_grad():
        for batch in torch.split(tokens.to(device_of(model)), 1):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float().transpose(1, 2)
            found.append((functional.cross_entropy(logits, batch[:, 1:], reduction="none"),))
            advance(1)
    return _as_scores(found, tokens)
