"""Locks between processes, which say for whom they are held.

A lock is a file that the operating system locks: it is free when its holder has ended, whatever ended it.
The holder writes into it who it is, so that whoever waits can say for which process, on which machine, and
for which run. Where a file system has no locks nobody waits, and a thing may be made twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST = 200


@contextmanager
def locked(path: Path, purpose: str, wait: Callable[[str], None]) -> Iterator[bool]:
    """Hold a lock, and yield whether another process held it first.

    Args:
        path: the lock's file; whoever holds it may remove it, or leave it for the next.
        purpose: what it is held for, such as a run's name; empty when there is nothing to say.
        wait: called once with the words for who holds it, before waiting.

    Raises:
        OSError: when the file cannot be written.
    """
    handle, waited = _acquired(path, wait)
    try:
        _write_holder(handle, purpose)
        yield waited
    finally:
        os.close(handle)


def _acquired(path: Path, wait: Callable[[str], None]) -> tuple[int, bool]:
    waited = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            if not waited and not _is_free(handle):
                wait(_holder(handle))
                waited = True
            if waited:
                fcntl.flock(handle, fcntl.LOCK_EX)
            # Its last holder may have removed the file that was waited for.
            with suppress(OSError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle, waited
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_free(handle: int) -> bool:
    """Lock what nobody holds, and take a file system without locks for one where all are free."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _write_holder(handle: int, purpose: str) -> None:
    text = f"process {os.getpid()} on {platform.node()}" + (f" for {purpose}" if purpose else "")
    with suppress(OSError):  # on a full disk the lock holds as well, and nobody is told for whom
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def _holder(handle: int) -> str:
    """Return who holds a lock; whatever lies in the file is shown as plain characters."""
    with suppress(OSError):
        text = os.pread(handle, _LONGEST, 0).decode(errors="replace")
        if text:
            return "".join(c if c.isprintable() else "?" for c in text)
    return "another process"
