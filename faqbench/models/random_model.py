"""Models of random weights and a tokenizer of bytes: real code paths at no cost, for tests and timing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from faqbench.config import UserError

N_BYTES = 256
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
)  # fmt: skip


def random_model(settings: Mapping[str, object]) -> Any:
    """Return a causal language model whose weights are drawn from a seed.

    Args:
        settings: fields of the transformers config, `model_type` and `seed` among them.

    Raises:
        UserError: for a model_type that transformers does not know, and for fields that it refuses.
    """
    from transformers import AutoModelForCausalLM

    config = _config(settings)
    with torch.random.fork_rng():
        torch.manual_seed(int(str(settings.get("seed", 0))))
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def random_config(settings: Mapping[str, object]) -> Mapping[str, Any]:
    """Return the fields of a random model's configuration, those that are left to transformers included.

    Raises:
        UserError: as `random_model` does.
    """
    if all(isinstance(settings.get(size), int) for size in _SIZES):
        return settings  # complete, so that transformers need not be asked
    fields: dict[str, Any] = _config(settings).to_dict()
    return fields


def _config(settings: Mapping[str, object]) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    # Validation freezes lists to tuples; transformers wants lists.
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    fields.pop("seed", None)
    model_type = str(fields.pop("model_type", None))
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"model.random.model_type={model_type} is not known to transformers.")
    fields = {"bos_token_id": N_BYTES, "eos_token_id": N_BYTES, "pad_token_id": None} | fields
    try:
        return AutoConfig.for_model(model_type, **fields)
    except StrictDataclassError as error:
        raise UserError(f"model.random: {' '.join(str(error).split())}.") from error


def byte_tokenizer() -> Any:
    """Return a transformers tokenizer of the 256 bytes and one end-of-text token, id 256."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"bos_token": "<|end|>", "eos_token": "<|end|>", "pad_token": "<|end|>"})
    assert len(fast) == N_BYTES + 1
    return fast
