"""Seconds, bytes and counts as a person reads them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """Return a duration in its two largest units, as in `3 min 20 s`."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(value / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def n_bytes(value: float) -> str:
    """Return an amount of bytes in the unit that suits it, powers of 1000."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return (
                f"{value / size:.1f} {unit}" if value < 100 * size else f"{value / size:.0f} {unit}"
            )
    return f"{value:.0f} B"


def ago(seconds_ago: float) -> str:
    """Return how long ago something was, in one unit."""
    for name, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds_ago >= size:
            return f"{seconds_ago / size:.0f} {name} ago"
    return "now"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, as in `1 cell`, `2 cells` and `2 entries`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun[:-1]}ies" if noun.endswith("y") else f"{count} {noun}s"
