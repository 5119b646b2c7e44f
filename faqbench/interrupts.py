"""Signals that end the program: remembered when they come, so that nothing that catches them can hide them.

Ctrl-C, SIGTERM and SIGHUP raise `Interrupted` wherever the program happens to be. That may be inside a
library which wraps the exception in one of its own, as Hydra does, or drops it, as a destructor must. So
the truth is not the exception but what the handler remembered:

    command line   `with signals_end_it() as came` around everything, which knows the code, 128 + n
    broad `except` `raise_if_interrupted()` first: what was caught may be an interrupt in disguise
    steps, writes  `raise_if_interrupted()` too: one that was dropped is raised again at the next step, and
                   nothing is kept whose making an interrupt may have cut short

A signal that is ignored stays ignored, as SIGHUP is under nohup, and one that a launcher handles stays its.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# One signal often comes twice, from the terminal and from the parent; who sends three will not wait.
_PATIENCE = 3
_LOOK_SECONDS = 0.25
_SECONDS_TO_FINISH = 5.0

_received: list[int] = []
_n_holding_back = 0


class Interrupted(KeyboardInterrupt):
    """The program was asked to end, by the signal whose number is the argument."""


def received() -> int | None:
    """Return the signal that asked this process to end, the first if there were several."""
    return _received[0] if _received else None


def raise_if_interrupted() -> None:
    """Raise what a signal raised once more.

    Raises:
        Interrupted: when the process was asked to end.
    """
    if _received:
        raise Interrupted(_received[0])


def interrupt(number: int) -> None:
    """End this process as if the signal had been sent to it, as when its child ended by one.

    Raises:
        Interrupted: always.
    """
    _received.append(number)
    raise Interrupted(number)


def number_of(error: KeyboardInterrupt) -> int:
    """Return the signal that an exception stands for, also one that another process raised."""
    return int(error.args[0]) if isinstance(error, Interrupted) else int(signal.SIGINT)


def must_pass(error: BaseException) -> bool:
    """Say whether an exception ends the program, so that no cell or service may keep it.

    Whatever else a library throws is that cell's failure, a panic in Rust among them, which is no
    `Exception`.

    Raises:
        Interrupted: when a signal came, whatever became of its exception.
    """
    raise_if_interrupted()
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


@contextmanager
def signals_end_it() -> Iterator[Sequence[int]]:
    """Let signals raise `Interrupted` in this block; an inner block of the same process changes nothing.

    Outside of the main thread, where Python handles no signals, nothing changes either.

    Yields:
        The signals that came, to be looked at after the block too, which forgets them.
    """
    global _received
    if threading.current_thread() is not threading.main_thread() or _is_handled():
        yield _received
        return
    free = (signal.SIG_DFL, signal.default_int_handler)
    before = {n: h for n in ENDING if (h := signal.getsignal(n)) in free}
    try:
        for number in before:
            signal.signal(number, _end)
        yield _received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = []


@contextmanager
def held_back() -> Iterator[None]:
    """Let no signal raise inside this short block; one that came is raised at its end.

    Raises:
        Interrupted: at the end, when a signal came meanwhile.
    """
    global _n_holding_back
    is_ending = bool(_received)  # then this block is part of cleaning up
    _n_holding_back += 1
    try:
        yield
    finally:
        _n_holding_back -= 1
    if not is_ending:
        raise_if_interrupted()


@cache
def end_with(parent: int) -> None:
    """Let this process end when its parent has, as by SIGTERM, and for sure some seconds later.

    Saying it again changes nothing.

    Args:
        parent: its process id, known before it could end.
    """
    watch = threading.Thread(target=_outlive, args=(parent,), name="faqbench-parent", daemon=True)
    watch.start()


def _outlive(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_FINISH)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_handled() -> bool:
    return any(signal.getsignal(number) is _end for number in ENDING)


def _end(number: int, _: FrameType | None) -> None:
    _received.append(number)
    if len(_received) >= _PATIENCE:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    elif len(_received) == 1 and not _n_holding_back:
        raise Interrupted(number)
