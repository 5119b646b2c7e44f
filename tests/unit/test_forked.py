"""Work in forked processes: the same results in the same order, whoever computed them."""

import multiprocessing
import os
import signal
import threading
from functools import partial

import pytest

from faqbench.forked import in_forks


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
