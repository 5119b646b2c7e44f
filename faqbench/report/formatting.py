"""Numbers as a reader wants them: few digits, the same everywhere, a true minus sign."""

from __future__ import annotations

import math

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


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals, or that it is below them."""
    if p is None or math.isnan(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def seconds(value: float) -> str:
    """Return a duration in the two units that matter."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_(value: float | None) -> str:
    """Return a size with three digits in decimal units."""
    if value is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 999.5 or unit == "TB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("unreachable: TB returns")


def count(n: int, noun: str) -> str:
    """Return "1 run", "2 runs"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listing(words: list[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
