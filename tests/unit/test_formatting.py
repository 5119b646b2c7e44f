"""Numbers in words: signs and zeros."""

import math

import pytest

from faqbench import formatting
from faqbench.formatting import ago, count, n_bytes, seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.26, "+1.3"),
        (-1.26, "\N{MINUS SIGN}1.3"),
        (0.04, "0.0"),
        (-0.04, "0.0"),
        (-0.0, "0.0"),
        (12345.6, "+12,345.6"),
        (-math.inf, "\N{MINUS SIGN}∞"),
        (None, formatting.NONE),
    ],
)
def test_a_signed_number_has_a_true_minus_and_a_zero_has_no_sign(value, text):
    assert formatting.signed(value, 1) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (9.95, "9.9 s"), (119.4, "119 s"), (200, "3 min 20 s"), (7260, "2 h 01 min"),
     (200000, "2 d 07 h")],
)  # fmt: skip
def test_seconds_are_told_in_two_units(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.35e9, "2.35 GB"), (4e14, "400 TB")]
)  # fmt: skip
def test_bytes_are_told_in_the_unit_that_suits(value, text):
    assert n_bytes(value) == text


def test_counts_and_ages_read_as_english():
    assert (count(1, "entry"), count(2, "entry"), count(0, "run")) == ("1 entry", "2 entries", "0 runs")
    assert (ago(30), ago(7200), ago(-5)) == ("now", "2 h ago", "now")
