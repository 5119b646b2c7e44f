"""Pausing the garbage collector, and giving memory back."""

import ctypes
import gc

import psutil
import pytest

from faqbench.garbage import give_back, uncollected


def test_the_collector_pauses_inside_and_goes_on_after_it_even_after_an_error():
    with pytest.raises(KeyError), uncollected():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_what_is_free_between_other_pieces_is_given_back():
    process = psutil.Process()
    pieces = [b"x" * (64_000 + i) for i in range(3_000)]
    pieces = pieces[::100]  # what is kept lies between what is not
    before = process.memory_info().rss
    give_back()
    assert before - process.memory_info().rss > 100_000_000 and len(pieces) == 30
