"""Interrupts, and work in forked processes: the same results in the same order, whoever computed them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial

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
from faqbench.processes import in_forks


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


@pytest.fixture
def has_cores(monkeypatch):
    """Return a function that sets the number of cores; threads that other tests left do not count."""

    def set_(n):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(n)))
        monkeypatch.setattr(threading, "active_count", lambda: 1)

    return set_


@pytest.fixture(params=[1, 3], ids=["one core", "three cores"])
def cores(request, has_cores):
    has_cores(request.param)
    return request.param


def test_results_come_in_the_order_of_the_work(cores):
    with in_forks([partial(divmod, n, 7) for n in range(40)]) as results:
        assert results() == [divmod(n, 7) for n in range(40)]


def test_several_cores_are_several_processes_and_one_is_this_one(cores):
    with in_forks([os.getpid] * 30) as results:
        assert (os.getpid() in results()) == (cores == 1)


def test_an_error_in_a_piece_of_work_is_raised_where_it_was_asked_for(cores):
    work = [partial(int, "1"), partial(int, "one"), partial(int, "3")]
    with pytest.raises(ValueError, match="one"), in_forks(work) as results:
        results()


def test_what_a_killed_process_left_undone_is_done(has_cores):
    has_cores(2)
    here = os.getpid()

    def die_elsewhere():
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    with in_forks([die_elsewhere] * 4) as results:
        assert results() == ["done"] * 4


def test_nothing_is_forked_beside_another_thread(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        with in_forks([os.getpid] * 4) as results:
            assert results() == [os.getpid()] * 4
    finally:
        end.set()
        thread.join()


def test_who_leaves_early_leaves_no_process_behind(has_cores):
    has_cores(2)
    with in_forks([signal.pause] * 2):
        pass
    assert not multiprocessing.active_children()
