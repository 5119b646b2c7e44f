import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from faqbench.interrupts import (
    Interrupted,
    held_back,
    interrupt,
    must_pass,
    number_of,
    raise_if_interrupted,
    received,
    signals_end_it,
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_remembered_even_where_its_exception_is_dropped(number):
    before = signal.getsignal(number)
    with signals_end_it() as came:
        with suppress(Interrupted):
            signal.raise_signal(number)
        with pytest.raises(Interrupted) as again:
            raise_if_interrupted()
    assert number_of(again.value) == number and list(came) == [number]
    assert signal.getsignal(number) is before
    raise_if_interrupted()  # another command's signals are not this one's


def test_an_inner_block_neither_forgets_the_signal_nor_takes_the_handlers_away():
    with signals_end_it():
        with pytest.raises(Interrupted), signals_end_it():
            signal.raise_signal(signal.SIGTERM)
        with signals_end_it():
            assert received() == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)  # an echo: the program is ending already
    with signals_end_it():
        assert received() is None


def test_a_signal_that_is_ignored_stays_ignored_and_a_handler_of_others_stays():
    seen = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    theirs = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with signals_end_it():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert received() is None and seen == [1]
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, theirs)


def test_a_signal_that_is_held_back_raises_at_the_end_of_the_block():
    done = []
    with signals_end_it(), pytest.raises(Interrupted):
        with held_back():
            signal.raise_signal(signal.SIGTERM)
            done.append("all of it")
        done.append("more")
    assert done == ["all of it"]


def test_whatever_is_caught_after_a_signal_is_that_signal():
    class Panic(BaseException):
        pass

    with signals_end_it():
        assert not must_pass(Panic()) and not must_pass(ValueError())
        assert must_pass(KeyboardInterrupt()) and must_pass(SystemExit())
        with pytest.raises(Interrupted):
            interrupt(signal.SIGHUP)
        with pytest.raises(Interrupted):
            must_pass(ValueError("in disguise"))


def test_the_third_signal_ends_at_once():
    code = """
import os, signal, time
from faqbench.interrupts import signals_end_it
with signals_end_it():
    for _ in range(3):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            pass
print("never said")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == -signal.SIGTERM and done.stdout == ""
