"""Text that is calibrated on and evaluated on: found by runs of 13 words, and counted.

A quantizer that has seen a passage while it was calibrated scores it better than a new one, so a number
is worth nothing where both sides share text. Two texts share a passage when they have the same words in
a row, whatever their case, punctuation and line breaks:

    words     runs of letters and digits, lower case
    grams     hashes of 13 words in a row (the length that GPT-3's authors looked for)
    a passage overlaps when half of its grams, or 38 in a row (50 words), are calibration grams

Grams that four or more passages, or four or more calibration texts, have are nobody's own: licence
headers, templates of code, phrases of a prompt. They count for nothing. So does a passage of fewer than
13 words.

Reference: Brown et al. 2020 (arXiv 2005.14165), appendix C. Differs: their documents are dropped for a
single gram; here a passage is counted when most of it, or a long stretch, is shared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

CODE_VERSION = 2  # raise it when the same texts would give another count
N_WORDS = 13
_ENOUGH_RUN = 38
_ENOUGH_FRAC = 0.5
_COMMON = 4
_WORD = re.compile(r"[^\W_]+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word is lost modulo 2^64


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of an evaluation's text is calibration text too.

    Attributes:
        n_overlapping: passages that overlap.
        n_passages: all passages that are long enough to tell.
    """

    n_overlapping: int
    n_passages: int


def calibration_grams(texts: Iterable[str]) -> Array:
    """Return the sorted grams of calibration texts, without those that many of them share."""
    return _rare([_grams(text) for text in texts])


def count_overlap(passages: Iterable[str], calibration: Array) -> Overlap:
    """Count the passages that share text with the calibration set; equal passages count once.

    Args:
        passages: of a protocol's text, or of the documents of a task.
        calibration: what `calibration_grams` returned.
    """
    grams = _of_passages(passages)
    overlaps, _ = _compare(grams, calibration)
    return Overlap(n_overlapping=int(overlaps.sum()), n_passages=len(grams))


def texts_that_overlap(texts: Sequence[str], passages: Iterable[str]) -> list[int]:
    """Return the indices of the texts without which no choice of the others overlaps with a passage.

    Few texts have what many of all texts have, once only some are drawn; so nothing is forgiven for being
    common among the texts, only for being common among the passages.
    """
    grams_of_texts = [np.unique(_grams(text)) for text in texts]
    if not grams_of_texts:
        return []
    grams = _of_passages(passages)
    overlaps, is_shared = _compare(grams, np.unique(np.concatenate(grams_of_texts)))
    inside = np.repeat(overlaps, [len(g) for g in grams]) & is_shared
    shared = np.unique(np.concatenate([*grams, np.zeros(0, dtype=np.uint64)])[inside])
    return [i for i, some in enumerate(grams_of_texts) if np.isin(some, shared).any()]


def _of_passages(passages: Iterable[str]) -> list[Array]:
    return [g for passage in dict.fromkeys(passages) if len(g := _grams(passage))]


def _compare(grams: Sequence[Array], calibration: Array) -> tuple[Array, Array]:
    """Return whether each passage overlaps [n_passages], and whether each gram is shared [n_grams]."""
    if not grams:
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
    is_shared = np.isin(np.concatenate(grams), np.intersect1d(calibration, _rare(grams)))
    lengths = np.array([len(g) for g in grams])
    starts = np.cumsum(lengths) - lengths
    n_shared = np.add.reduceat(is_shared.astype(np.int64), starts)
    runs = _longest_runs(is_shared, starts)
    return (n_shared >= _ENOUGH_FRAC * lengths) | (runs >= _ENOUGH_RUN), is_shared


def _longest_runs(is_shared: Array, starts: Array) -> Array:
    """Return the most shared grams in a row within each passage, [n_passages]."""
    place = np.arange(len(is_shared))
    before = np.where(is_shared, -1, place)
    before[starts] = np.maximum(before[starts], starts - 1)  # a run ends with its passage
    runs: Array = np.maximum.reduceat(place - np.maximum.accumulate(before), starts)
    return runs


def _rare(grams: Sequence[Array]) -> Array:
    """Return the sorted grams that fewer than `_COMMON` of the texts have."""
    if not grams:
        return np.zeros(0, dtype=np.uint64)
    found, counts = np.unique(np.concatenate([np.unique(g) for g in grams]), return_counts=True)
    rare: Array = found[counts < _COMMON]
    return rare


def _grams(text: str) -> Array:
    """Return the hash of every 13 words in a row, [max(0, n_words - 12)]."""
    words = np.array([_hash(word) for word in _WORD.findall(text.lower())], dtype=np.uint64)
    n = len(words) - N_WORDS + 1
    if n < 1:
        return np.zeros(0, dtype=np.uint64)
    grams = np.zeros(n, dtype=np.uint64)
    for offset in range(N_WORDS):
        grams = grams * _BASE + words[offset : offset + n]
    return grams


@lru_cache(maxsize=2**18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
