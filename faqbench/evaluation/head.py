"""The model in two parts: hidden states for every token, logits only where they are scored.

The [tokens, vocabulary] logits are the largest tensor of an evaluation, and taking them costs a third of
a small model's time. So the decoder gives hidden states, rows of them are chosen, and the output head
is applied to some hundred rows at a time, and log-softmax to as many of them as stay in a CPU's cache,
where it takes a fifth of the time:

    log p[i] = float32(logits[i]) - logsumexp(float32(logits[i]))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from faqbench.evaluation.attention import stacked_attention
from faqbench.models import Inputs, Model, Passenger, blocks_passed_by, decoding, device_of

# Float32 logits of one application of the head: on a CPU so many rows that reading the head's weights is
# little beside multiplying them (SmolLM2-135M with AVX2: 122 rows 60, 244 rows 73 GFLOP/s a core); on
# CUDA, enough work for the whole device.
_HEAD_BYTES = {"cpu": 48 * 2**20}
_HEAD_BYTES_ELSEWHERE = 256 * 2**20
# Float32 log-probabilities that are looked at together on a CPU: they stay in its second-level caches.
_SOFTMAX_BYTES = {"cpu": 2 * 2**20}
_N_CHECKED = 8
_BLOCK = 128


def hidden_states(model: Any, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Return the decoder's output after its last norm, [n_rows, length, hidden_size]."""
    with stacked_attention(model):
        output = model.get_decoder()(input_ids=tokens, use_cache=False, **kwargs)
    hidden: torch.Tensor = output.last_hidden_state
    return hidden


class Question(Protocol):
    """Something that the hidden states of one or several views of a model tell.

    Attributes:
        views: each a `Model`, or a causal language model of transformers.
        inputs: give `tokens` and the other arguments of `hidden_states`.
    """

    views: Sequence[Any]
    inputs: Sequence[Inputs]

    def take(self, number: int, hidden: Sequence[Tensor]) -> None:
        """Take what `hidden_states` returns for an input, of each of the views."""


@torch.no_grad()
def answer(
    questions: Sequence[Question],
    advance: Callable[[], None] = lambda: None,
    head: Model | None = None,
    beside: Sequence[Passenger] = (),
) -> None:
    """Give every question its hidden states, in the order of its inputs.

    Streamed models read every block once, whatever is asked of them: all inputs of all questions pass it
    before the next is read. Meanwhile the weights of one view's head are there.

    Args:
        questions: of models that are all streamed, or all resident.
        advance: told of every block that all streamed models have passed.
        head: whose; None is the first view.
        beside: others who look at the blocks of streamed models meanwhile.
    """
    asked: dict[Any, list[Inputs]] = {} if head is None else {head: []}
    for question in questions:
        for view in question.views:
            asked.setdefault(view, []).extend(question.inputs)
    with ExitStack() as stack:
        if any(isinstance(view, Model) and not view.is_resident for view in asked):
            for view in asked:
                stack.enter_context(stacked_attention(view.module))
            renamed = {view: [_for_decoder(make) for make in own] for view, own in asked.items()}
            decodings = stack.enter_context(decoding(renamed, advance, beside))
            outputs = {decoded.model: decoded.outputs() for decoded in decodings}
        else:
            outputs = {
                view: (hidden_states(module_of(view), **make()) for make in own)
                for view, own in asked.items()
            }
        for question in questions:
            for number in range(len(question.inputs)):
                question.take(number, [next(outputs[view]) for view in question.views])


def module_of(view: Any) -> Any:
    """Return the causal language model of transformers that a view is of, or that stands for one."""
    return view.module if isinstance(view, Model) else view


def _for_decoder(make: Inputs) -> Inputs:
    return lambda: {"input_ids" if k == "tokens" else k: v for k, v in make().items()}


def logits_of(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Apply the output head, and Gemma's soft cap where the config has one, in the model's dtype."""
    logits: torch.Tensor = model.get_output_embeddings()(hidden)
    cap = _soft_cap(model)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _soft_cap(model: Any) -> float | None:
    cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return cap


def log_probabilities(model: Any, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of rows, in order, each with its log-probabilities of the next token.

    Args:
        model: a causal language model of transformers.
        hidden: [n, hidden_size], the decoder's output.

    Yields:
        The slice, and float32 [rows of the slice, vocabulary].
    """
    device = hidden.device.type
    row_bytes = 4 * model.get_output_embeddings().weight.shape[0]
    n_head = max(1, _HEAD_BYTES.get(device, _HEAD_BYTES_ELSEWHERE) // row_bytes)
    n_softmax = max(1, _SOFTMAX_BYTES.get(device, _HEAD_BYTES_ELSEWHERE) // row_bytes)
    apply = _apply_into_one_place(model, hidden, n_head)
    start = 0
    for rows in torch.split(hidden, n_head):
        for logits in torch.split(apply(rows), n_softmax):
            log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            yield slice(start, start + len(logits)), log_p
            start += len(logits)


def _apply_into_one_place(model: Any, hidden: Tensor, n_rows: int) -> Callable[[Tensor], Tensor]:
    """Return `logits_of` a model, for up to `n_rows` rows at a time, into memory that is taken once.

    A CPU's allocator gives a tensor of this size fresh pages every time (glibc: from 32 MiB on), and the
    system clears them one by one: a fifth of the product's time.
    """
    head = model.get_output_embeddings()
    is_product = type(head) is nn.Linear and head.bias is None and _soft_cap(model) is None
    if hidden.device.type != "cpu" or not is_product:
        return partial(logits_of, model)
    place = hidden.new_empty(min(n_rows, len(hidden)), len(head.weight))

    def apply(rows: Tensor) -> Tensor:
        return torch.mm(rows, head.weight.t(), out=place[: len(rows)])

    return apply


def top_token(log_p: torch.Tensor) -> torch.Tensor:
    """Return the most likely token of each row, the first one of equals, as `argmax` does.

    On a CPU argmax over a whole vocabulary takes longer than log-softmax does; the largest value per
    block, the first block that has it, and its place there take a tenth of that.
    """
    n, vocabulary = log_p.shape
    n_blocks = vocabulary // _BLOCK
    if log_p.device.type != "cpu" or n_blocks < 2 * _BLOCK:
        return log_p.argmax(-1)
    blocks = log_p[:, : n_blocks * _BLOCK].view(n, n_blocks, _BLOCK)
    block = blocks.amax(-1).argmax(-1)
    row = torch.arange(n)
    top: torch.Tensor = block * _BLOCK + blocks[row, block].argmax(-1)
    tail = log_p[:, n_blocks * _BLOCK :]
    if not tail.shape[1]:
        return top
    last = n_blocks * _BLOCK + tail.argmax(-1)
    return torch.where(log_p[row, last] > log_p[row, top], last, top)


def splits(view: Any) -> bool:
    """Return whether decoder, head and soft cap together are the model's own forward.

    Checked on eight tokens, since a model may do more after its head than this file knows. The blocks of a
    view do not have to be there.

    Args:
        view: a `Model`, or a causal language model of transformers.
    """
    model = module_of(view)
    if model.get_output_embeddings() is None or model.get_decoder() is None:
        return False
    vocabulary = model.config.get_text_config().vocab_size
    few = torch.arange(_N_CHECKED, device=device_of(model))[None] % vocabulary
    with ExitStack() as stack, torch.no_grad():
        if isinstance(view, Model):
            stack.enter_context(blocks_passed_by(model, view.architecture))
            stack.enter_context(view.there(model.get_output_embeddings()))
        whole = model(input_ids=few, use_cache=False).logits
        parts = logits_of(model, hidden_states(model, few))
    return torch.allclose(whole, parts, rtol=1e-3, atol=1e-3, equal_nan=True)
