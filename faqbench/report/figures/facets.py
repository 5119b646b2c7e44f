"""One set of axes per setting: rows that compete stand together, and lines stay few enough to read.

A setting is what rows share apart from method and bits, such as the scenario or the group size; what
makes a variant of a method (its gamma, its exponents) stays in the row's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from faqbench.report import facts
from faqbench.report.columns import Row, is_variant
from faqbench.report.figures import style
from faqbench.report.panels import Panel


@dataclass(frozen=True, kw_only=True)
class Facet:
    """The rows of one setting, full precision left out.

    Attributes:
        title: the values that make the setting; empty for the only one.
        rows: those that compete there.
    """

    title: str
    rows: tuple[Row, ...]

    @property
    def fewest_bits(self) -> int | None:
        """The bit-width at which methods differ most."""
        return min((row.bits for row in self.rows if row.bits), default=None)

    def at(self, bits: int | None) -> list[Row]:
        """Return the rows of one bit-width."""
        return [row for row in self.rows if row.bits == bits]


def facets(panel: Panel) -> list[Facet]:
    """Return the settings of a panel; a method that a setting's key does not touch is in each."""
    keys = [k for k in panel.shown_keys if not is_variant(k)]
    rows = [row for row in panel.rows if not row.is_baseline]
    settings = list(dict.fromkeys(tuple(row.keys.get(k) for k in keys) for row in rows))
    full = [s for s in settings if None not in s] or settings
    found = []
    for setting in full:
        fitting = [r for r in rows if _fits(tuple(r.keys.get(k) for k in keys), setting)]
        named = [(k, v) for k, v in zip(keys, setting, strict=True) if v]
        found.append(Facet(title=", ".join(key_words(k, v) for k, v in named), rows=tuple(fitting)))
    return found


def row_label(row: Row, longest: int = 38) -> str:
    """Return a row's name for an axis: the method, what makes it a variant or a setting, its bits."""
    words = [facts.display_method(row.method), *(key_words(k, v) for k, v in row.shown.items())]
    bits = "" if row.bits is None else f", {row.bits} bits"
    return f"{style.label(' '.join(words), longest - len(bits))}{bits}"


def setting_label(setting: dict[str, str]) -> str:
    """Return a contest's setting in few words: the bits, then values that speak for themselves."""
    rest = [key_words(k, v) for k, v in setting.items() if k != "quant.bits"]
    return ", ".join([f"{setting.get('quant.bits', '?')} bits", *rest])


def representatives(rows: Sequence[Row], most: int, per_method: int = 3) -> list[Row]:
    """Return a few rows for a plot: at most so many in all, and of each method's variants."""
    kept: list[Row] = []
    for row in rows:
        if sum(other.method == row.method for other in kept) < per_method:
            kept.append(row)
    return kept[:most]


def how_many(shown: int, there: int, nouns: str) -> str:
    """Return a sentence about what was left out for the reader's sake, or nothing."""
    return "" if shown == there else f" {shown} of {there} {nouns} are drawn; the tables have all."


def key_words(key: str, value: str) -> str:
    """Return a value that speaks for itself, as a group's name does, or the key with it."""
    return value if key.endswith(".name") else f"{facts.key_label(key)}={value}"


def _fits(loose: tuple[str | None, ...], tight: tuple[str | None, ...]) -> bool:
    return all(a is None or a == b for a, b in zip(loose, tight, strict=True))
