"""Leases: what a running cell reads is not evicted under its hands.

A reader holds a shared lock on an entry's manifest, and an evictor needs the exclusive one. Locks are of
the operating system's: they end with their process, whatever ends it, and need no writing, so a cache may
be read-only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faqbench.stages.manifest import MANIFEST


class Leases:
    """The entries that one cell holds."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}

    def hold(self, entry: Path, target: Path | None = None) -> bool:
        """Hold an entry until `release`; False when it is gone, or is being evicted.

        Args:
            entry: its folder.
            target: where the folder is about to be moved, if it is.
        """
        name = target or entry
        if name in self._handles:
            if _is_there(self._handles[name], entry):
                return True
            os.close(self._handles.pop(name))  # another entry has taken its place
        try:
            handle = os.open(entry / MANIFEST, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:
            pass  # a file system without locks: nothing is evicted there either
        if not _is_there(handle, entry):
            os.close(handle)
            return False
        self._handles[name] = handle
        return True

    def drop(self, entry: Path) -> None:
        """Hold one entry no longer."""
        handle = self._handles.pop(entry, None)
        if handle is not None:
            os.close(handle)

    def release(self) -> None:
        """Hold nothing any longer."""
        for entry in list(self._handles):
            self.drop(entry)


@contextmanager
def nobody_holds(entry: Path) -> Iterator[bool]:
    """Yield whether no process holds an entry; while that is so, none can begin to."""
    handle = None
    free = False
    with suppress(OSError):
        # Some network file systems lock exclusively only what is open for writing.
        handle = os.open(entry / MANIFEST, os.O_RDWR | os.O_NONBLOCK)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = _is_there(handle, entry)
    try:
        yield free
    finally:
        if handle is not None:
            os.close(handle)


def _is_there(handle: int, entry: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), (entry / MANIFEST).stat())
    except OSError:
        return False
