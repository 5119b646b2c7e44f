"""Who follows the cell that runs in this context, so that its record is handed over and not shown twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

SECONDS_TO_ANSWER = 120  # that a follower gives its service, before the system ends it


class Follower(Protocol):
    """A process that shows a cell while it runs."""

    run_id: str

    def finish(self) -> bool:
        """Let it show the record that now lies in `runs/`; False when it has died."""
        ...


_current: ContextVar[Follower | None] = ContextVar("follower", default=None)


@contextmanager
def followed_by(follower: Follower | None) -> Iterator[None]:
    """Say inside this block who follows the cell."""
    token = _current.set(follower)
    try:
        yield
    finally:
        _current.reset(token)


def hand_over(run_id: str) -> bool:
    """Give a run that ended to its follower; False when nobody follows it."""
    follower = _current.get()
    return follower is not None and follower.run_id == run_id and follower.finish()
