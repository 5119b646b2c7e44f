"""A tokenizer of one token per character, corpora of toy texts, and requests with few fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from faqbench.calibration import CalibrationSet, DrawRequest, draw
from faqbench.config.calibration import ScenarioSection, matched
from faqbench.corpora import Corpus

TEXTS = tuple(f"Text number {i}: " + "word " * (i % 7) for i in range(50))


class LetterTokenizer:
    """Token ids are code points; 1 and 2 are special."""

    bos_token_id: int | None = 1
    all_special_ids = (1, 2)

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        ids = [ord(c) for c in text]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(128)}


@pytest.fixture
def tokenizer() -> LetterTokenizer:
    return LetterTokenizer()


def corpus(texts: Sequence[str] = TEXTS, domain: str = "toy") -> Corpus:
    return Corpus(
        domain=domain, part="calibration", texts=tuple(texts), origin="a test", fingerprint="0" * 64
    )


def scenario(**changes: Any) -> ScenarioSection:
    return matched().model_copy(update=changes)


@pytest.fixture
def request_for() -> Callable[..., DrawRequest]:
    def make(n_samples: int = 4, seq_len: int = 16, seed: int = 0, **changes: Any) -> DrawRequest:
        names = {k: changes.pop(k) for k in ("apart", "bos", "allow_repeat") if k in changes}
        settings: dict[str, Any] = {"apart": False, "bos": None, "allow_repeat": False}
        return DrawRequest(
            n_samples=n_samples,
            seq_len=seq_len,
            seed=seed,
            scenario=scenario(**changes),
            **(settings | names),
        )

    return make


@pytest.fixture
def toy() -> Callable[..., Corpus]:
    return corpus


@pytest.fixture
def drawn(
    toy: Callable[..., Corpus], tokenizer: LetterTokenizer, request_for: Callable[..., DrawRequest]
) -> Callable[..., CalibrationSet]:
    def make(texts: Sequence[str] | None = None, **changes: Any) -> CalibrationSet:
        source = toy() if texts is None else toy(texts)
        return draw([(source, 1.0)], tokenizer, request_for(**changes))

    return make
