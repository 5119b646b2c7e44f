"""Numbers as a reader wants them: few digits, the same everywhere, a true minus sign.

Every duration, size, count, share and measured number that a person reads, on a page, in a table or on a
terminal, is written by the one function here that is for its kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EM DASH}"


def number(value: float | None, decimals: int) -> str:
    """Return a fixed number of decimals, thousands separated; a dash for what is not there."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if abs(value) >= 1e7:
        return f"{value:.2e}".replace("-", MINUS)
    return f"{value:z,.{decimals}f}".replace("-", MINUS)  # z: no minus before a rounded zero


def signed(value: float | None, decimals: int) -> str:
    """Return a number with its sign, plus included."""
    text = number(value, decimals)
    positive = value is not None and value > 0 and text.strip("0.,") != ""
    return f"+{text}" if positive else text


def percent(share: float | None, decimals: int = 0) -> str:
    """Return a share of 1 in percent."""
    text = number(None if share is None else 100 * share, decimals)
    return text if text == NONE else f"{text}\N{NO-BREAK SPACE}%"


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals, or that it is below them."""
    if p is None or math.isnan(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """Return a duration in the two units that matter, as in `3 min 20 s`."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24:02d} h"


def ago(seconds_ago: float) -> str:
    """Return how long ago something was, in one unit."""
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds_ago >= size:
            return f"{seconds_ago / size:.0f} {name} ago"
    return "now"


def n_bytes(value: float | None) -> str:
    """Return a size with three digits in decimal units."""
    if value is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("unreachable: TB returns")


def count(n: int, noun: str) -> str:
    """Return a count with its noun, as in `1 run`, `2 runs` and `2 entries`."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun[:-1]}ies" if noun.endswith("y") else f"{n:,} {noun}s"


def listing(words: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
