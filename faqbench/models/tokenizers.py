"""Telling tokenizers apart: by everything that decides what they make of a text."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from faqbench.stages import hash_json

_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """Return a sha256 over vocabulary, merges, normaliser and special tokens.

    A tokenizer of the `tokenizers` library is known by its own serialisation; one written in Python by
    its class and its vocabulary.
    """
    if tokenizer not in _known:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        content = backend.to_str() if backend is not None else tokenizer.get_vocab()
        parts = [type(tokenizer).__name__, content, tokenizer.special_tokens_map]
        _known[tokenizer] = hash_json(parts)
    return _known[tokenizer]
