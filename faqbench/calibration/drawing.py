r"""Drawing token windows for calibration.

The scheme is that of GPTQ's and AWQ's reference code on a concatenated corpus, made reproducible:

    shuffle the texts with PCG64(seed)        no global random state
    tokenise each text followed by "\n\n"     no special tokens; only as many texts as are needed
    concatenate, cut into n_samples windows   window i is tokens [i * seq_len, (i + 1) * seq_len)

Windows therefore begin in mid-document and may span several texts. With `documents=apart` every window
is the beginning of a document of its own; shorter documents are passed over, since padding would change
what attention sees and joining would make them a running text again. With `add_bos` every window is a
BOS token and seq_len - 1 tokens of text. Equal texts, tokenizer, sizes and seed give equal tokens, bit
for bit, and of one domain without copies fewer windows of a seed are the first of more.

A mixture gives each domain its share of the windows, to the nearest window, and draws each domain as it
would be drawn alone: so the windows of a domain are the first of its pure draw of the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from faqbench.calibration.calibration_set import CalibrationSet, DrawRequest, fingerprint_tokens
from faqbench.calibration.scenarios import DrawnTexts, change_tokens, draw_random_tokens, draw_texts
from faqbench.config import UserError
from faqbench.corpora import Corpus
from faqbench.models import encode

CODE_VERSION = 2  # raise it when the same settings would draw other tokens
SEPARATOR = "\n\n"


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> Mapping[str, Any]:
        """Return a mapping whose `input_ids` are the text's token ids."""
        ...


def draw(corpora: Sequence[tuple[Corpus, float]], tokenizer: Any, request: DrawRequest) -> CalibrationSet:
    """Draw windows of text from one corpus or a mixture.

    Args:
        corpora: each with its share of the windows; the shares sum to 1.
        tokenizer: of the model.
        request: how many windows and how.

    Raises:
        UserError: when the texts have too few tokens, or a scenario leaves none.
    """
    shares = {corpus.domain: share for corpus, share in corpora}
    counts = apportion(list(shares.values()), request.n_samples)
    used = [
        _draw_corpus(corpus, tokenizer, request, count)
        for (corpus, _), count in zip(corpora, counts, strict=True)
        if count
    ]
    label = " + ".join(f"{domain} {share:g}" for domain, share in shares.items())
    stacked = np.concatenate([piece.windows for piece in used])
    return _finish(
        stacked[interleave([len(piece.windows) for piece in used])],
        tokenizer,
        request,
        domain=label if len(shares) > 1 else next(iter(shares)),
        n_windows_of=dict(zip(shares, counts, strict=True)),
        texts=tuple(text for piece in used for text in piece.texts),
        window_start="document" if request.apart else "cut",
        repeated_share=sum(piece.n_repeated for piece in used) / stacked.size,
        sources=tuple(corpus.provenance() for corpus, _ in corpora),
    )


def draw_without_text(tokenizer: Any, request: DrawRequest) -> CalibrationSet:
    """Draw windows of tokens that are uniform on the vocabulary, special tokens left out."""
    windows = draw_random_tokens(
        vocabulary(tokenizer, request.vocab_size), (request.n_samples, request.width), request.seed
    )
    return _finish(
        windows,
        tokenizer,
        request,
        domain="random tokens",
        n_windows_of={"random tokens": request.n_samples},
        texts=(),
        window_start="none",
        repeated_share=0.0,
        sources=({"origin": "uniform on the vocabulary"},),
    )


def draw_evaluation(
    protocols: Mapping[str, torch.Tensor], texts: Sequence[str], tokenizer: Any, request: DrawRequest
) -> CalibrationSet:
    """Draw windows from the very tokens that an evaluation scores.

    Args:
        protocols: token ids of the windows of each protocol, of any shape.
        texts: the paragraphs behind them, for a leak guard.
        tokenizer: of the model.
        request: how many windows and how; whether documents are apart does not matter here.

    Raises:
        UserError: when the protocols have too few tokens.
    """
    stream = np.concatenate([tokens.numpy().ravel() for tokens in protocols.values()])
    n_windows = len(stream) // request.width
    names = ", ".join(protocols)
    if n_windows == 0 or (n_windows < request.n_samples and not request.allow_repeat):
        raise UserError(
            f"scenario.leak=true takes windows from {names}, which has {len(stream)} tokens, but "
            f"{request.size_of(request.n_samples)} are needed; lower calibration.n_samples, raise "
            "limit, or set allow_repeat=true."
        )
    pieces = stream[: n_windows * request.width].reshape(n_windows, request.width)
    order = np.random.Generator(np.random.PCG64(request.seed)).permutation(n_windows)
    chosen = np.resize(order, request.n_samples)
    return _finish(
        pieces[chosen],
        tokenizer,
        request,
        domain=f"evaluation text ({names})",
        n_windows_of={names: request.n_samples},
        texts=tuple(texts),
        window_start="cut",
        repeated_share=max(0, request.n_samples - n_windows) / request.n_samples,
        sources=tuple({"origin": f"windows of protocol {name}"} for name in protocols),
    )


def apportion(shares: Sequence[float], n: int) -> list[int]:
    """Return whole numbers that sum to n, nearest to the shares: the largest remainders get one more."""
    exact = [share * n for share in shares]
    counts = [int(x + 1e-9) for x in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: n - sum(counts)]:
        counts[i] += 1
    return counts


def interleave(counts: Sequence[int]) -> list[int]:
    """Return the order that spreads the rows of several stacked pieces evenly, as cards are dealt."""
    places = [((k + 0.5) / count, piece) for piece, count in enumerate(counts) for k in range(count)]
    return sorted(range(len(places)), key=places.__getitem__)


def vocabulary(tokenizer: Any, vocab_size: int | None) -> NDArray[np.int64]:
    """Return the ids of a tokenizer's tokens that a model knows, special ones left out."""
    special = set(tokenizer.all_special_ids)
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    return np.array([i for i in ids if vocab_size is None or i < vocab_size], dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    """The windows of one corpus [n_windows, width], the texts in them, and how many tokens repeat."""

    windows: NDArray[np.int64]
    texts: tuple[str, ...]
    n_repeated: int


def _draw_corpus(corpus: Corpus, tokenizer: Tokenizer, request: DrawRequest, n_windows: int) -> _Piece:
    end = "" if request.apart else SEPARATOR

    width = request.width
    drawn = draw_texts(
        corpus.texts,
        lambda text: encode(tokenizer, text + end),
        request.scenario,
        seed=request.seed,
        n_needed=n_windows * width,
        most=width if request.apart else None,
        least=width if request.apart else 1,
        allow_repeat=request.allow_repeat,
    )
    if drawn.n_tokens < n_windows * width:
        raise UserError(_too_few(corpus, request, n_windows, drawn))
    ids = np.fromiter((i for piece in drawn.ids for i in piece), dtype=np.int64)
    windows = ids[: n_windows * width].reshape(n_windows, width)
    return _Piece(windows=windows, texts=drawn.texts, n_repeated=drawn.n_repeated)


def _too_few(corpus: Corpus, request: DrawRequest, n_windows: int, drawn: DrawnTexts) -> str:
    name = request.scenario.name
    where = f"The {corpus.part} part of '{corpus.domain}'"
    where += "" if name == "matched" else f" under scenario={name}"
    part = "" if n_windows == request.n_samples else f" ({n_windows} of the windows)"
    if request.apart:
        n_there = drawn.n_tokens // request.width
        have = f"has {n_there} documents of {request.width} tokens or more, but n_samples={n_windows}"
    else:
        have = f"has {drawn.n_tokens} tokens, but {request.size_of(n_windows)}"
    return (
        f"{where} {have}{part} are needed; lower calibration.n_samples or calibration.seq_len, use a "
        "domain of more text, or let texts repeat with allow_repeat=true."
    )


def _finish(
    windows: NDArray[np.int64], tokenizer: Any, request: DrawRequest, **facts: Any
) -> CalibrationSet:
    """Change the tokens as the scenario says, put BOS in front, and fingerprint the set."""
    scenario = request.scenario
    token_ids = np.empty(0, dtype=np.int64)
    if scenario.noise_rate:
        token_ids = vocabulary(tokenizer, request.vocab_size)
    windows = change_tokens(windows, scenario, token_ids, request.seed)
    if request.bos is not None:
        windows = np.insert(windows, 0, request.bos, axis=1)
        facts["window_start"] = f"bos+{facts['window_start']}"
    tokens = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.int64))
    return CalibrationSet(
        tokens=tokens,
        seed=request.seed,
        n_texts_used=len(facts["texts"]),
        fingerprint=fingerprint_tokens(tokens),
        **facts,
    )
