"""Attention whose operands are changed on the way: where what a KV cache would hold is to be seen.

Keys enter a cache after their position embedding, between a block's linears, where no module of
transformers stands. So a view's attention gets a child of its own, which is given queries, keys and values
[batch, heads, tokens, head_dim] and returns them changed, and transformers' registry of attention functions
one that asks it. Only `sdpa` is wrapped.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

from faqbench.config import UserError
from faqbench.models.architecture import Architecture

OPERANDS_ATTENTION = "faqbench_operands"
_CHILD = "operands"


def change_operands(module: Any, architecture: Architecture, change: nn.Module) -> None:
    """Let every block of a view's own modules change queries, keys and values before they meet.

    Args:
        module: the model.
        architecture: where its blocks are.
        change: called with the three, and gives the three.

    Raises:
        UserError: for a model whose attention is not `sdpa`.
    """
    config = module.config.get_text_config()
    if config._attn_implementation != "sdpa":
        raise UserError(
            f"The model's attention is '{config._attn_implementation}', whose keys and values are not to "
            "be reached: quant.activations.kv_bits and bmm need 'sdpa'."
        )
    _register()
    config._attn_implementation = OPERANDS_ATTENTION
    for block in architecture.block_modules(module):
        block.get_submodule(architecture.role("qkv").inspect).add_module(_CHILD, change)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    query, key, value = module.get_submodule(_CHILD)(query, key, value)
    result: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **kwargs
    )
    return result


@cache
def _register() -> None:
    """Make the attention known to transformers, with the masks of `sdpa`; not before it is needed."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(OPERANDS_ATTENTION, _attend)
    AttentionMaskInterface.register(OPERANDS_ATTENTION, sdpa_mask)
