"""What sections of a configuration are made of, presets, a margin, and the one exception that a user sees.

A margin, within which two methods count as equal, is stated before anything is measured. A difference
that no test finds may still be large, so "no significant difference" is no equality. Equality is a claim
of its own and needs a margin: `1% 1pt 0.01nats` says that perplexities within 1 % of each other,
accuracies and agreements within 1 point and divergences within 0.01 nats make no difference to whoever
asks.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class UserError(ValueError):
    """A mistake, or a lack, that the user can mend. Its text is one clear sentence.

    The command line prints the text alone, without a traceback, and exits with code 2. Raise it with
    the key, the value, what is allowed and the nearest spelling, or with what was missing and what
    to do about it.
    """


def conf_dir() -> Path:
    """Return the folder of yamls: inside an installed package, or beside it in a source tree."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@cache
def preset(group: str, name: str) -> Mapping[str, Any]:
    """Return what a choice of a group sets, its defaults among the group's files included.

    Values are as written: `${bits}` stays that. A choice that has no file here sets nothing.
    """
    file = conf_dir() / group / f"{name}.yaml"
    if not re.fullmatch(r"[\w./-]+", name) or ".." in name or not file.is_file():
        return {}
    own: dict[str, Any] = yaml.safe_load(file.read_text()) or {}
    settings: Mapping[str, Any] = {}
    for choice in own.pop("defaults", ["_self_"]):
        more = own if choice == "_self_" else preset(group, choice) if isinstance(choice, str) else {}
        settings = _merged(settings, more)
    return settings


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = below.keys() & above.keys()
    nested = {k for k in both if isinstance(below[k], Mapping) and isinstance(above[k], Mapping)}
    return {**below, **above, **{k: _merged(below[k], above[k]) for k in nested}}


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known spelling, or an empty string."""
    near = difflib.get_close_matches(word.lower(), {k.lower(): k for k in words}, n=1, cutoff=0.5)
    if near:
        return f" Did you mean '{next(k for k in words if k.lower() == near[0])}'?"
    # Transposed short names such as 'fqa' fall under difflib's cutoff; the same letters do not.
    same = [k for k in words if sorted(k.lower()) == sorted(word.lower())]
    return f" Did you mean '{same[0]}'?" if same else ""


Slug = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,79}$")]
DType = Literal["float32", "bfloat16", "float16"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen mapping that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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
