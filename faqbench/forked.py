"""Pieces of work in forked processes, while this process goes on with something else.

A forked process starts with all that its parent holds in memory, so work on thousands of records begins at
once and only results have to travel. Who finishes a piece takes the next from a pipe that holds their
numbers. What a child did not deliver, because it failed or was killed, is done here: then an error is
raised where it can be read, with its traceback, and no result depends on who computed it.

Where forking is unsafe (other threads run, another system than Linux) or useless (one core), it is all
done here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import TypeVar

from faqbench.interrupts import ENDING

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
