"""Several processes on one machine: locks between them, work in forks, memory that each gives back.

A lock is a file that the operating system locks: it is free when its holder has ended, whatever ended it.
The holder writes into it who it is, so that whoever waits can say for which process, on which machine, and
for which run. Where a file system has no locks nobody waits, and a thing may be made twice.

A forked process starts with all that its parent holds in memory, so work on thousands of records begins at
once and only results have to travel. Who finishes a piece takes the next from a pipe that holds their
numbers. What a child did not deliver, because it failed or was killed, is done here: then an error is
raised where it can be read, with its traceback, and no result depends on who computed it.

Where forking is unsafe (other threads run, another system than Linux) or useless (one core), it is all
done here.

Python looks for unreachable cycles whenever enough new objects exist, and each look at the oldest walks
over all there are: reading thousands of records spends two fifths of its time so, and finds nothing.

The C library keeps freed pieces between others that are in use. A model's weights, read and dropped a few
times, leave half a gigabyte so, which the system counts as the process's own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import multiprocessing
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from faqbench.interrupts import ENDING

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


T = TypeVar("T")
_NUMBER_BYTES = 2


@contextmanager
def in_forks(work: Sequence[Callable[[], T]]) -> Iterator[Callable[[], list[T]]]:
    """Start the work, and give a function that waits for its results, in the order of the work."""
    n_processes = min(_n_cores(), len(work)) if _can_fork() else 1
    if n_processes < 2:
        yield lambda: [piece() for piece in work]
        return
    reader, writer = os.pipe()
    os.write(writer, b"".join(i.to_bytes(_NUMBER_BYTES, "big") for i in range(len(work))))
    os.close(writer)
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(n_processes)]
    children = [context.Process(target=_work, args=(work, reader, end), daemon=True) for _, end in pipes]

    def results() -> list[T]:
        delivered: dict[int, T] = {}
        for connection, _ in pipes:
            with suppress(EOFError):  # a child that was killed
                delivered |= connection.recv()
        return [delivered[i] if i in delivered else piece() for i, piece in enumerate(work)]

    try:
        with warnings.catch_warnings():
            # Python 3.12 and later warn of the idle threads of BLAS, which knows how to be forked.
            warnings.simplefilter("ignore", DeprecationWarning)
            for child in children:
                child.start()
        os.close(reader)
        for _, end in pipes:
            end.close()
        yield results
    finally:
        for child in children:
            if child.pid is not None:
                child.kill()  # nothing to those that have delivered
                child.join()
        for connection, _ in pipes:
            connection.close()


def _work(work: Sequence[Callable[[], T]], numbers: int, connection: Connection) -> None:
    """Take pieces as long as there are any, and send what they gave; in the child."""
    for number in ENDING:  # the parent, whom a signal ends too, ends its children
        signal.signal(number, signal.SIG_IGN)
    done: dict[int, T] = {}
    with suppress(Exception):  # the parent meets the error itself
        while taken := os.read(numbers, _NUMBER_BYTES):
            i = int.from_bytes(taken, "big")
            done[i] = work[i]()
    with suppress(BrokenPipeError):  # nobody waits any more
        connection.send(done)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0))


def _can_fork() -> bool:
    is_alone = threading.active_count() == 1 and not multiprocessing.current_process().daemon
    return sys.platform == "linux" and is_alone


def give_back() -> None:
    """Give what is free back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Let no garbage collection start inside this block, whose objects are kept or free themselves."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
