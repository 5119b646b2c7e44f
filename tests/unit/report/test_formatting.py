"""Numbers in words: signs and zeros."""

import math

import pytest

from faqbench.report import formatting


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
