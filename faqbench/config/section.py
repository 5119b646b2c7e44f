"""What sections of the configuration are made of, and the one exception that a user sees."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class UserError(ValueError):
    """A mistake, or a lack, that the user can mend. Its text is one clear sentence.

    The command line prints the text alone, without a traceback, and exits with code 2. Raise it with
    the key, the value, what is allowed and the nearest spelling, or with what was missing and what
    to do about it.
    """


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
