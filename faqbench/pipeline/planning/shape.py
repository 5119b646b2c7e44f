"""The sizes of a model, read from its own configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What cost depends on.

    Attributes:
        n_blocks: decoder blocks.
        linears: per block and role, (in_features, out_features of all linears of the role together).
        hidden_size: width of the residual stream.
        vocab_size: rows of the output head.
        n_parameters: of the whole model, tied weights once.
    """

    n_blocks: int
    linears: Mapping[str, tuple[int, int]]
    hidden_size: int
    vocab_size: int
    n_parameters: int

    @property
    def n_block_weights(self) -> int:
        """Weights of all linears of all blocks."""
        return self.n_blocks * sum(a * b for a, b in self.linears.values())

    @property
    def n_gram_elements(self) -> int:
        """Elements of the Gram matrices of one block."""
        return sum(width * width for width, _ in self.linears.values())


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape that a transformers configuration describes, or None when it lacks a size."""
    try:
        hidden, mlp = int(config["hidden_size"]), int(config["intermediate_size"])
        n_blocks, vocab = int(config["num_hidden_layers"]), int(config["vocab_size"])
        n_heads = int(config["num_attention_heads"])
    except (KeyError, TypeError):
        return None
    n_kv_heads = int(config.get("num_key_value_heads") or n_heads)
    width = int(config.get("head_dim") or hidden // n_heads)
    linears = {
        "qkv": (hidden, (n_heads + 2 * n_kv_heads) * width),
        "o": (n_heads * width, hidden),
        "gate_up": (hidden, 2 * mlp),
        "down": (mlp, hidden),
    }
    n_tables = 1 if config.get("tie_word_embeddings", True) else 2
    in_blocks = n_blocks * sum(a * b for a, b in linears.values())
    return ModelShape(
        n_blocks=n_blocks,
        linears=linears,
        hidden_size=hidden,
        vocab_size=vocab,
        n_parameters=in_blocks + n_tables * vocab * hidden,
    )
