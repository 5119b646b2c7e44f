"""Which part of its domain a text belongs to, from the text alone.

The sha256 of the text, read as a fraction of its range, is uniform on [0, 1):

    [0.0, 0.4)  calibration    statistics that decide the quantization
    [0.4, 0.5)  selection      choosing options (presearch)
    [0.5, 1.0)  evaluation     perplexity that is reported

A text keeps its part when its domain grows or shrinks, when two domains share it, and between
versions of this program. Parts are of whole texts: translations of one programming task, say, are
different texts, and may fall in different parts.
"""

from __future__ import annotations

from typing import Literal

from faqbench.stages import hash_text

Part = Literal["calibration", "selection", "evaluation"]


def part_of(text: str) -> Part:
    """Return the part that a text belongs to, the same one wherever and whenever it is asked."""
    # Integers, since 0.4 is no binary fraction: a boundary must not move with rounding.
    tenths = int(hash_text(text), 16) * 10 >> 256
    if tenths < 4:
        return "calibration"
    return "selection" if tenths < 5 else "evaluation"
