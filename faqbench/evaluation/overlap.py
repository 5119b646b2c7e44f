"""Text that is calibrated on and evaluated on: found by runs of 13 words, and counted.

A quantizer that has seen a passage while it was calibrated scores it better than a new one, so a number
is worth nothing where both sides share text. Two texts share a passage when they have the same words in
a row, whatever their case, punctuation and line breaks:

    words     runs of letters and digits, lower case
    grams     hashes of 13 words in a row (the length that GPT-3's authors looked for)
    a passage overlaps when half of its grams, or 38 of them (50 words in a row), are calibration grams

Grams that four or more calibration texts have are nobody's passage: licence headers, templates of code,
phrases of a prompt. They are left out. So is a passage of fewer than 13 words.

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

N_WORDS = 13
_ENOUGH_GRAMS = 38
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
    own = [np.unique(_grams(text)) for text in texts]
    if not own:
        return np.zeros(0, dtype=np.uint64)
    grams, counts = np.unique(np.concatenate(own), return_counts=True)
    rare: Array = grams[counts < _COMMON]
    return rare


def count_overlap(passages: Sequence[str], calibration: Array) -> Overlap:
    """Count the passages that share text with the calibration set.

    Args:
        passages: of a protocol's text, or the documents of a task.
        calibration: what `calibration_grams` returned.
    """
    grams = [_grams(passage) for passage in passages]
    grams = [g for g in grams if len(g)]
    n_overlapping = 0
    if grams and len(calibration):
        is_shared = np.isin(np.concatenate(grams), calibration)
        starts = np.cumsum([0, *(len(g) for g in grams)])[:-1]
        n_shared = np.add.reduceat(is_shared.astype(np.int64), starts)
        needed = np.minimum(_ENOUGH_GRAMS, [_ENOUGH_FRAC * len(g) for g in grams])
        n_overlapping = int((n_shared >= needed).sum())
    return Overlap(n_overlapping=n_overlapping, n_passages=len(grams))


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
