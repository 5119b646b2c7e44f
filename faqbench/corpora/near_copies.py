"""Packaged texts that share a passage with evaluation text of another hash: never calibrated on.

Which part a text belongs to follows from its hash, and so do the parts of its near copies: two questions
of BoolQ quote the same article, two exercises differ in their numbers. `near_copies.txt` lists the texts
of the calibration and selection parts that overlap with the evaluation part of a packaged domain, or with
a packaged task, by the leak guard's own measure; `tests/golden/make_near_copies.py` writes it. Without
them the packaged domains pass the guard whatever is drawn.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from faqbench.stages import hash_json, hash_text

_N_DIGITS = 16


def is_near_copy(text: str) -> bool:
    """Say whether a text of the calibration or selection part is listed."""
    return digest(text) in _listed()


def digest(text: str) -> str:
    """Return the beginning of a text's sha256, by which it is listed."""
    return hash_text(text)[:_N_DIGITS]


@cache
def near_copies_hash() -> str:
    """Return what tells this list from another."""
    return hash_json(sorted(_listed()))


@cache
def _listed() -> frozenset[str]:
    path = resources.files("faqbench.corpora") / "near_copies.txt"
    return frozenset(path.read_text(encoding="utf-8").split())
