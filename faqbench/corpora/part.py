"""Which part of its domain a document belongs to, from the document alone.

The sha256 of the document's key, read as a fraction of its range, is uniform on [0, 1):

    [0.0, 0.4)  calibration    statistics that decide the quantization
    [0.4, 0.5)  selection      choosing options (presearch)
    [0.5, 1.0)  evaluation     perplexity that is reported

The key is the text itself, unless several texts are versions of one document: those share a key
(`faqbench.assets.document_key`: the translations of one programming task), and so a part. A text keeps
its part when its domain grows or shrinks, when two domains share it, and between versions of this
program.
"""

from __future__ import annotations

from typing import Literal

from faqbench.stages import hash_text

Part = Literal["calibration", "selection", "evaluation"]


def part_of(key: str) -> Part:
    """Return the part of the document with this key, the same one wherever and whenever it is asked."""
    # Integers, since 0.4 is no binary fraction: a boundary must not move with rounding.
    tenths = int(hash_text(key), 16) * 10 >> 256
    if tenths < 4:
        return "calibration"
    return "selection" if tenths < 5 else "evaluation"
