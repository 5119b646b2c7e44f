"""The model in two parts: hidden states for every token, logits only where they are scored.

The [tokens, vocabulary] logits are the largest tensor of an evaluation, and taking them costs a third of
a small model's time. So the decoder gives hidden states, rows of them are chosen, and the output head
is applied to some hundred rows at a time, and log-softmax to as many of them as stay in a CPU's cache,
where it takes a fifth of the time:

    log p[i] = float32(logits[i]) - logsumexp(float32(logits[i]))

On a CPU attention is taken with less work than by `sdpa`, and the same result up to rounding.

Legend: H query heads, K key-value heads, G = H / K queries to each; a row of L tokens.

    stacked   the G queries of a key-value head become G L rows of one head, [batch, K, G L, head_dim],
              so keys and values are not repeated G times
    causal    a row is cut into blocks of queries; each sees the keys up to its end, so that half of the
              products are never taken; a pack's own mask hides more, and never shows a later token

On SmolLM2-135M in bfloat16, two cores: stacked takes 0.65 of the time of `sdpa` for packs of 128 tokens,
with the same bits; blocks take 0.66 of it for windows of 512 (reports/LOG.md). On other devices, for other
implementations of attention and for modules that are not laid out so, nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from faqbench.models import (
    Inputs,
    Model,
    Passenger,
    blocks_passed_by,
    decoding,
    device_of,
    register_attention,
)

_NAME = "faqbench_stacked"
_N_QUERIES = 64
# Rows up to here are not cut: their products are too few.
_SHORT = 128


@contextmanager
def stacked_attention(model: Any) -> Iterator[None]:
    """Let a model on a CPU whose attention is `sdpa` use the attention above meanwhile."""
    config = model.config.get_text_config()
    on_cpu = device_of(model).type == "cpu"
    if not on_cpu or config._attn_implementation != "sdpa":
        yield
        return
    register_attention(_NAME, _attend)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks: [batch, heads, L, head_dim] in, [batch, L, H, head_dim] out."""
    batch, n_heads, length, head_dim = query.shape
    n_kv_heads = key.shape[1]
    is_causal = kwargs.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    asks_more = dropout > 0 or any(kwargs.get(k) is not None for k in ("position_bias", "softcap"))
    is_plain = key.shape[2] == length and value.shape[3] == head_dim and n_heads % n_kv_heads == 0
    is_shared = is_causal if attention_mask is None else attention_mask.shape[1] == 1
    if asks_more or not is_plain or not is_shared:
        more = {"dropout": dropout, "scaling": scaling, **kwargs}
        return _sdpa(module, query, key, value, attention_mask, **more)
    stacks = query.reshape(batch, n_kv_heads, n_heads // n_kv_heads, length, head_dim)
    if attention_mask is None or is_causal:
        attended = _causal(stacks, key, value, attention_mask, scaling)
    else:
        attended = _stacked(stacks, key, value, attention_mask, scaling)
    return attended.reshape(batch, n_heads, length, head_dim).transpose(1, 2).contiguous(), None


def _stacked(stacks: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Attend from [batch, K, G, rows, head_dim], with a mask [batch or 1, 1, rows, keys]."""
    n_stacked = stacks.shape[2]
    attended = functional.scaled_dot_product_attention(
        stacks.flatten(2, 3), key, value, attn_mask=mask.repeat(1, 1, n_stacked, 1), scale=scaling
    )
    return attended.view(stacks.shape)


def _causal(
    stacks: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attend as `_stacked` does, where no row sees a later one; without a mask it sees all before it."""
    length = stacks.shape[3]
    block = length if length <= _SHORT else _N_QUERIES
    # Zeros, and a triangle at the end: its last columns are the mask of a block that ends there.
    triangle = torch.full((block, block), -torch.inf, dtype=stacks.dtype).triu(1)
    triangle = functional.pad(triangle, (length - block, 0))[None, None]
    attended = torch.empty_like(stacks)
    for end in range(length, 0, -block):
        start = max(0, end - block)
        if mask is None:
            seen = triangle[:, :, block - (end - start) :, length - end :]
        else:
            seen = mask[:, :, start:end, :end]
        attended[:, :, :, start:end] = _stacked(
            stacks[:, :, :, start:end], key[:, :, :end], value[:, :, :end], seen, scaling
        )
    return attended


def _sdpa(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    result: tuple[Tensor, None] = sdpa_attention_forward(*args, **kwargs)
    return result


# Logits of one application of the head: on a CPU so many rows that reading the head's weights is little
# beside multiplying them, and so few that glibc, which gives anything from 32 MiB on fresh pages to be
# cleared, takes the memory of the last ones; on CUDA, enough work for the whole device.
_HEAD_BYTES = {"cpu": 24 * 2**20}
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
            renamed = {view: [_for_decoder(make) for make in makers] for view, makers in asked.items()}
            decodings = stack.enter_context(decoding(renamed, advance, beside))
            outputs = {decoded.model: decoded.outputs() for decoded in decodings}
        else:
            outputs = {
                view: (hidden_states(module_of(view), **make()) for make in makers)
                for view, makers in asked.items()
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
    head = model.get_output_embeddings()
    is_product = type(head) is nn.Linear and head.bias is None
    logits: Tensor = _product(hidden, head.weight) if is_product else head(hidden)
    cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """Multiply rows by a weight, [..., columns] by [vocabulary, columns].

    In float32 on a CPU torch asks MKL, which uses the vector units of Intel's own CPUs in full; oneDNN uses
    those of all: 0.4 of the time for a head's shape with AMD's AVX512, 0.75 with AVX2 alone.
    """
    is_on_cpu = weight.device.type == "cpu" and weight.dtype == torch.float32
    libraries = (torch.backends.mkl, torch.backends.mkldnn)
    has_both = all(library.is_available() for library in libraries)
    if not (is_on_cpu and has_both) or torch.is_grad_enabled():  # the product has no gradient
        return functional.linear(rows, weight)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return product


def log_probabilities(model: Any, hidden: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield slices of rows, in order, each with its log-probabilities of the next token.

    Args:
        model: a causal language model of transformers.
        hidden: [n, hidden_size], the decoder's output.

    Yields:
        The slice, and float32 [rows of the slice, vocabulary].
    """
    device, n_logits = hidden.device.type, model.get_output_embeddings().weight.shape[0]
    n_head = max(1, _HEAD_BYTES.get(device, _HEAD_BYTES_ELSEWHERE) // (hidden.itemsize * n_logits))
    n_softmax = max(1, _SOFTMAX_BYTES.get(device, _HEAD_BYTES_ELSEWHERE) // (4 * n_logits))
    start = 0
    for rows in torch.split(hidden, n_head):
        for logits in torch.split(logits_of(model, rows), n_softmax):
            log_p = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            yield slice(start, start + len(logits)), log_p
            start += len(logits)


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
