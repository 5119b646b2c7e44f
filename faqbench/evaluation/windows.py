"""From a protocol's text to windows of tokens, checked against what the tokenizer is known to give.

A drifted tokenizer, a normalised line end or a file that is not quite the test split change every
number of a protocol without a sign. `expected_tokens.yaml` therefore holds, per text and tokenizer,
the number of tokens of the whole stream and its sha256 (int32, little endian). A tokenizer is known
by the hash of its vocabulary; one that is not listed is used all the same, and marked unverified.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import torch
import yaml

from faqbench.config import Experiment, UserError
from faqbench.evaluation.protocols import Protocol
from faqbench.evaluation.texts import protocol_text
from faqbench.models import bos_of, encode
from faqbench.stages import Progress, hash_json, hash_text

_C4_WINDOWS = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class ProtocolTokens:
    """The windows of one protocol.

    Attributes:
        protocol: what they are windows of.
        tokens: [n_windows, seq_len] int64, on the CPU; the first windows of the stream when capped.
        n_special: leading tokens of each window that are no text: 1 with a BOS token, else 0.
        n_tokens_total: tokens of the whole stream, the dropped tail included.
        fingerprint: sha256 of `tokens`, the cap and the window length therefore included.
        stream_fingerprint: sha256 of the whole stream, equal for all window lengths and caps.
        verified: whether the stream is the one that is known for this tokenizer.
        warnings: sentences that the record must carry; not empty when unverified.
    """

    protocol: Protocol
    tokens: torch.Tensor
    n_tokens_total: int
    fingerprint: str
    stream_fingerprint: str
    verified: bool
    warnings: tuple[str, ...]
    n_special: int

    @property
    def text_tokens(self) -> torch.Tensor:
        """The windows without their BOS token [n_windows, seq_len - n_special]."""
        return self.tokens[:, self.n_special :]


def protocol_tokens(
    protocol: Protocol, tokenizer: Any, experiment: Experiment, progress: Progress
) -> ProtocolTokens:
    """Tokenise a protocol's text and cut it into non-overlapping windows.

    With `evaluation.add_bos` every window is the BOS token and seq_len - 1 tokens of the stream, so that
    every token of text is scored; without, the first token of a window is only context.

    Raises:
        UserError: when the text is missing, shorter than one window, or gives other tokens than the
            protocol is known to have with this tokenizer; and for a BOS token that it lacks.
    """
    bos = bos_of(tokenizer, "evaluation.add_bos") if experiment.evaluation.add_bos else None
    width = protocol.seq_len - (bos is not None)
    with progress.stage(f"{protocol.name}: tokenise", 1) as advance:
        text = protocol_text(protocol, experiment, progress)
        stream = torch.tensor(encode(tokenizer, text), dtype=torch.int64)
        advance()
    n_windows = stream.numel() // width
    if n_windows == 0:
        raise UserError(
            f"Protocol '{protocol.name}' needs {width} tokens for one window, but its "
            f"text has only {stream.numel()}."
        )
    fingerprint = hash_tokens(stream)
    warnings = _compare_with_expected(protocol, tokenizer, stream.numel(), fingerprint)
    caps = [experiment.n_windows(), _C4_WINDOWS if protocol.corpus == "c4-new" else None]
    n_windows = min([n_windows, *(cap for cap in caps if cap is not None)])
    windows = stream[: n_windows * width].view(n_windows, width)
    if bos is not None:
        windows = torch.cat([torch.full((n_windows, 1), bos), windows], dim=1)
    return ProtocolTokens(
        protocol=protocol,
        tokens=windows,
        n_tokens_total=stream.numel(),
        fingerprint=hash_tokens(windows),
        stream_fingerprint=fingerprint,
        verified=not warnings,
        warnings=warnings,
        n_special=protocol.seq_len - width,
    )


@cache
def expected_tokens_hash() -> str:
    """Return the sha256 of what is known of protocols' tokens, on which `verified` depends."""
    return hash_text(files("faqbench.evaluation").joinpath("expected_tokens.yaml").read_text("utf-8"))


def hash_tokens(tokens: torch.Tensor) -> str:
    """Return the sha256 of a tensor of token ids, its shape included unless it is one row."""
    digest = hashlib.sha256(tokens.to(torch.int32).numpy().astype("<i4").tobytes())
    if tokens.dim() > 1:
        digest.update(repr(tuple(tokens.shape)).encode())
    return digest.hexdigest()


def vocabulary_hash(tokenizer: Any) -> str:
    """Return the sha256 of a tokenizer's vocabulary, which is how expected tokens know it."""
    return hash_json(tokenizer.get_vocab())


def expected_entry(tokens: ProtocolTokens, tokenizer: Any, name: str) -> dict[str, Any]:
    """Return what `expected_tokens.yaml` is to hold for a stream whose text has been checked."""
    return {
        "tokenizer": name,
        "vocabulary": vocabulary_hash(tokenizer),
        "n_tokens": tokens.n_tokens_total,
        "sha256": tokens.stream_fingerprint,
    }


def _compare_with_expected(
    protocol: Protocol, tokenizer: Any, n_tokens: int, sha256: str
) -> tuple[str, ...]:
    tokenizers = _expected_tokens().get(protocol.stream, {})
    expected = tokenizers.get(vocabulary_hash(tokenizer))
    if expected is None:
        return (
            f"Protocol '{protocol.name}' is unverified: no token count and hash are known for this "
            f"tokenizer (found {n_tokens} tokens, sha256 {sha256[:16]}).",
        )
    if (n_tokens, sha256) != (expected["n_tokens"], expected["sha256"]):
        raise UserError(
            f"Protocol '{protocol.name}' is not what it is called: the {expected['tokenizer']} "
            f"tokenizer gives {n_tokens} tokens (sha256 {sha256[:16]}), not {expected['n_tokens']} "
            f"({expected['sha256'][:16]}); check the text or the tokenizer's version."
        )
    return ()


@cache
def _expected_tokens() -> dict[str, dict[str, dict[str, Any]]]:
    text = files("faqbench.evaluation").joinpath("expected_tokens.yaml").read_text("utf-8")
    entries = yaml.safe_load(text)
    return {stream: {entry["vocabulary"]: entry for entry in known} for stream, known in entries.items()}
