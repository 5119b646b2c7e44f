"""How much is said: `-q` (tables, warnings and errors alone) or `-v` (more lines), set once per command.

It reaches cells in other processes through FAQBENCH_VERBOSITY, and changes no result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast

Verbosity = Literal["quiet", "normal", "verbose"]
_VARIABLE = "FAQBENCH_VERBOSITY"
_FLAGS: dict[str, Verbosity] = {
    "-q": "quiet",
    "--quiet": "quiet",
    "-v": "verbose",
    "--verbose": "verbose",
}


def take_verbosity(arguments: Sequence[str]) -> tuple[list[str], Verbosity]:
    """Split `-q` and `-v`, anywhere among the arguments, from the rest; Hydra knows neither."""
    given = [_FLAGS[a] for a in arguments if a in _FLAGS]
    return [a for a in arguments if a not in _FLAGS], given[-1] if given else current_verbosity()


def current_verbosity() -> Verbosity:
    """Return how much is to be said here."""
    found = os.environ.get(_VARIABLE, "normal")
    return cast("Verbosity", found) if found in ("quiet", "verbose") else "normal"


@contextmanager
def verbosity(level: Verbosity) -> Iterator[None]:
    """Say so much inside this block, in this process and those that it starts."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = level
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before
