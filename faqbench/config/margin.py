"""The margin within which two methods count as equal, stated before anything is measured.

A difference that no test finds may still be large, so "no significant difference" is no equality.
Equality is a claim of its own and needs a margin: `1% 1pt 0.01nats` says that perplexities within 1 % of
each other, accuracies and agreements within 1 point and divergences within 0.01 nats make no difference
to whoever asks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_FORMS = "1%, 1pt, 0.01nats or several of them"
_UNITS = {"%": "percent", "pt": "points", "nats": "nats"}


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How large a difference may be at most to be none; None where nothing was stated.

    Attributes:
        percent: of a perplexity, above 0.
        points: of an accuracy or agreement, above 0.
        nats: of a divergence per token, above 0.
    """

    percent: float | None = None
    points: float | None = None
    nats: float | None = None

    @property
    def log_ratio(self) -> float | None:
        """The margin of a perplexity as the logarithm of a ratio, the same in both directions."""
        return None if self.percent is None else math.log1p(self.percent / 100)

    def __str__(self) -> str:
        """Return the spelling that `parse_margin` reads."""
        values = {unit: getattr(self, name) for unit, name in _UNITS.items()}
        return " ".join(f"{v:g}{unit}" for unit, v in values.items() if v is not None)


def parse_margin(text: str) -> Margin:
    """Read a margin such as `1% 1pt 0.01nats`.

    Raises:
        ValueError: with a sentence, for anything else.
    """
    amounts: dict[str, float] = {}
    for word in text.replace(",", " ").split():
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(%|pt|nats)", word)
        if match is None:
            raise ValueError(f"margin '{word}' is not allowed; write {_FORMS}")
        value, name = float(match[1]), _UNITS[match[2]]
        if not value > 0:
            raise ValueError(f"margin '{word}' is not allowed; it is above 0")
        if name in amounts:
            raise ValueError(f"margin '{text}' states {match[2]} twice")
        amounts[name] = value
    if not amounts:
        raise ValueError(f"a margin is {_FORMS}")
    return Margin(**amounts)
