"""A random Llama, a tokenizer of one token per byte, and experiments with few fields."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from faqbench.config import Experiment
from faqbench.stages import PlainProgress

SMALL = {
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


@pytest.fixture
def progress() -> PlainProgress:
    return PlainProgress()


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "<s>", "</s>"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).eval()


@pytest.fixture
def experiment() -> Callable[..., Experiment]:
    """Make an experiment that has the fields which evaluation reads."""

    def make(*, limit: int | None = None, wikitext2_path: Path | None = None, **changed: Any) -> Experiment:
        fields = {
            "kl": False,
            "batch_tokens": 512,
            "batch_size": 3,
            "add_bos": False,
            "num_fewshot": 0,
            "n_windows": None,
            "n_documents": None,
        }
        return Experiment.model_construct(
            evaluation=SimpleNamespace(**{**fields, **changed}),
            data=SimpleNamespace(wikitext2_path=wikitext2_path),
            limit=limit,
        )

    return make
