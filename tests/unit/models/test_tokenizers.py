"""Encoding a text: what a tokenizer answers, raises, or never answers."""

from threading import Event

import pytest

from faqbench.config import UserError
from faqbench.models import encode, tokenizers
from faqbench.models.random_model import byte_tokenizer


class Silent:
    """A tokenizer that answers when it is told to, which may be never."""

    name_or_path = "someone/silent"

    def __init__(self) -> None:
        self.told = Event()

    def __call__(self, text, *, add_special_tokens, verbose):
        self.told.wait()
        return {"input_ids": []}


def test_a_text_is_encoded_without_special_tokens():
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(encode(tokenizer, "ab")) == "ab"


def test_a_tokenizer_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(tokenizers, "_SECONDS", 0.01)
    silent = Silent()
    with pytest.raises(UserError, match=r"The tokenizer someone/silent did not answer within 0 s"):
        encode(silent, "a")
    silent.told.set()


def test_what_a_tokenizer_raises_is_raised():
    def broken(text, *, add_special_tokens, verbose):
        raise ValueError("no such byte")

    with pytest.raises(ValueError, match="no such byte"):
        encode(broken, "a")
