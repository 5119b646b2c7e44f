"""Tokenizers: their BOS token, and telling them apart by everything that decides what they make of a text.

Whether a text begins with a BOS token is the configuration's word, never a tokenizer's default: some put
one in front and some do not, some add an EOS, and that changes between versions. So texts are encoded
without special tokens everywhere, and where BOS is wanted its id is put in front.
"""

from __future__ import annotations

from threading import Thread
from typing import Any
from weakref import WeakKeyDictionary

from faqbench.config import UserError
from faqbench.stages import hash_json

# What a tokenizer does besides its own serialisation.
_SETTINGS = ("model_max_length", "add_bos_token", "add_eos_token")
_SECONDS, _CHARACTERS_PER_SECOND = 120.0, 1_000.0
_known: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """Return a sha256 over vocabulary, merges, normaliser, special tokens and the longest input.

    A tokenizer of the `tokenizers` library is known by its own serialisation; one written in Python by
    its class and its vocabulary.
    """
    if tokenizer not in _known:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        content = backend.to_str() if backend is not None else tokenizer.get_vocab()
        settings = {k: tokenizer.init_kwargs.get(k) for k in _SETTINGS}
        parts = [type(tokenizer).__name__, content, tokenizer.special_tokens_map, settings]
        _known[tokenizer] = hash_json(parts)
    return _known[tokenizer]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return a text's token ids, without special tokens; its length is no matter here.

    A tokenizer is a program that came with a model, and a pathological one never ends: it gets two minutes
    and a millisecond for each character, which the slowest of honest tokenizers does not take.

    Raises:
        UserError: naming the tokenizer, when it does not answer in that time.
    """
    answer: list[list[int]] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            # verbose=False: a text longer than the model's context is no mistake here.
            answer.append(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
            failure.append(error)

    bound = _SECONDS + len(text) / _CHARACTERS_PER_SECOND
    worker = Thread(target=work, name="tokenizer", daemon=True)  # it may never end
    worker.start()
    worker.join(bound)
    if worker.is_alive():
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise UserError(
            f"The tokenizer {name} did not answer within {bound:.0f} s on a text of {len(text):,} "
            "characters; choose another with model.tokenizer, or a shorter text."
        )
    if failure:
        raise failure[0]
    return answer[0]


def bos_of(tokenizer: Any, key: str) -> int:
    """Return the id of a tokenizer's BOS token.

    Args:
        tokenizer: of a model.
        key: the setting that asks for it.

    Raises:
        UserError: when there is none.
    """
    if tokenizer.bos_token_id is None:
        raise UserError(f"{key}=true needs a tokenizer with a BOS token; this has none.")
    return int(tokenizer.bos_token_id)


def check_ids(largest: int, vocab_size: int, tokenizer: Any, what: str) -> None:
    """Refuse tokens that a model has no embedding for; on a GPU, looking one up ends the process.

    A tokenizer may have such tokens (added ones, for which nobody resized the model) as long as no text
    comes to hold one.

    Args:
        largest: the largest token id of `what`.
        vocab_size: rows of the embedding.
        tokenizer: that gave the ids.
        what: holds them, as the sentence begins.

    Raises:
        UserError: naming the token.
    """
    if largest >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UserError(
            f"{what} has token {largest} ({token!r}), but the model's embedding has {vocab_size} rows: "
            "the tokenizer is not this model's, or the model was not resized for tokens that were added."
        )
