"""Attention of an evaluation on a CPU, with less work than `sdpa` and the same result up to rounding.

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

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from faqbench.models import device_of, register_attention

_NAME = "faqbench_stacked"
_BLOCK = 64
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
    block = length if length <= _SHORT else _BLOCK
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
