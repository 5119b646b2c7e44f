"""Pausing the garbage collector."""

import gc

import pytest

from faqbench.garbage import uncollected


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
