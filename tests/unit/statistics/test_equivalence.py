"""Equality within a margin, against statsmodels' two one-sided tests and against closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.weightstats import DescrStatsW

from faqbench.config.margin import Margin, parse_margin
from faqbench.statistics import detectable_from_stderr, equivalence_p, unseen_p


@pytest.mark.parametrize("shift", [0.0, 0.3, -0.3, 0.9, 2.0])
def test_equivalence_is_the_two_one_sided_t_tests_of_statsmodels(shift):
    differences = np.random.default_rng(3).normal(shift, 1.0, size=25)
    expected, *_ = DescrStatsW(differences).ttost_mean(-0.8, 0.8)
    p = equivalence_p(differences.mean(), scipy.stats.sem(differences), 24, 0.8)
    assert p == pytest.approx(expected, rel=1e-9)


def test_equivalence_at_5_percent_is_a_90_percent_interval_within_the_margin():
    for effect in np.linspace(-1, 1, 41):
        end = abs(effect) + 0.25 * scipy.stats.t.ppf(0.95, 9)
        assert (equivalence_p(effect, 0.25, 9, 0.9) < 0.05) == (end < 0.9)


def test_equality_is_rarely_claimed_of_rows_that_differ_by_the_margin():
    draws = np.random.default_rng(0).normal(1.0, 1.0, size=(20_000, 8))
    means, errors = draws.mean(axis=1), scipy.stats.sem(draws, axis=1)
    p = [equivalence_p(m, e, 7, 1.0) for m, e in zip(means, errors, strict=True)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.006)


def test_an_error_of_infinite_degrees_is_a_normal_one():
    assert equivalence_p(0.1, 0.2, math.inf, 0.5) == pytest.approx(scipy.stats.norm.cdf(-2.0))


def test_items_that_never_differ_show_equality_as_far_as_their_number_goes():
    assert unseen_p(100, 0.01) == pytest.approx(0.99**100)  # a hundred items cannot show one point
    assert unseen_p(300, 0.01) < 0.05 < unseen_p(298, 0.01)


def test_the_detectable_difference_is_found_four_times_in_five():
    effect = detectable_from_stderr(0.5)
    z = (np.random.default_rng(1).normal(effect, 0.5, size=100_000)) / 0.5
    assert np.mean(np.abs(z) > scipy.stats.norm.ppf(0.975)) == pytest.approx(0.8, abs=0.005)


def test_a_margin_is_read_as_it_is_written():
    margin = parse_margin("0.5% 1pt, .01nats")
    assert margin == Margin(percent=0.5, points=1.0, nats=0.01)
    assert parse_margin(str(margin)) == margin
    assert margin.log_ratio == pytest.approx(math.log(1.005))
    assert parse_margin("2pt").log_ratio is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "1%"), ("1", "'1'"), ("-1%", "'-1%'"), ("0pt", "above 0"), ("1% 2%", "twice"),
     ("1%%", "'1%%'"), ("nan%", "'nan%'"), ("5 nats", "'5'")],
)  # fmt: skip
def test_a_margin_of_another_spelling_is_refused_with_a_sentence(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_margin(text)
