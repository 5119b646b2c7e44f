"""The error of several sources: it covers, its equality is seldom wrong, its differences are found."""

import math

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.weightstats import DescrStatsW

from faqbench.statistics import Error, Items, Student, aggregate_draws, mean_accuracy_difference


def student(stderr, degrees):
    return Error((Student(stderr=stderr, degrees=degrees),))


def items(n_only_a, n_only_b, n):
    differences = np.repeat([1.0, -1.0, 0.0], [n_only_a, n_only_b, n - n_only_a - n_only_b])
    return Error((Items(differences, np.ones(n)),)), (n_only_a - n_only_b) / n


@pytest.mark.parametrize("shift", [0.0, 0.3, -0.3, 0.9, 2.0])
def test_equivalence_is_the_two_one_sided_t_tests_of_statsmodels(shift):
    differences = np.random.default_rng(3).normal(shift, 1.0, size=25)
    expected, *_ = DescrStatsW(differences).ttost_mean(-0.8, 0.8)
    p = student(scipy.stats.sem(differences), 24).equivalence_p(differences.mean(), 0.8)
    assert p == pytest.approx(expected, rel=1e-9)


def test_equivalence_at_5_percent_is_a_90_percent_interval_within_the_margin():
    for error in (student(0.25, 9), student(0.2, 9).beside(Student(stderr=0.15, degrees=3))):
        for effect in np.linspace(-1, 1, 41):
            low, high = error.interval(effect, confidence=0.9)
            assert (error.equivalence_p(effect, 0.9) < 0.05) == (low > -0.9 and high < 0.9)


def test_a_p_value_below_5_percent_is_a_95_percent_interval_without_zero():
    for error in (student(0.25, 9).beside(Student(stderr=0.2, degrees=1)), items(9, 3, 60)[0]):
        for effect in np.linspace(-4, 4, 81):
            low, high = error.interval(effect)
            assert (error.p_value(effect) < 0.05) == (low > 0 or high < 0)


def test_an_error_of_infinite_degrees_is_a_normal_one():
    error = student(0.2, math.inf)
    assert error.equivalence_p(0.1, 0.5) == pytest.approx(scipy.stats.norm.cdf(-2.0))
    assert error.detectable() == pytest.approx(0.2 * (1.959964 + 0.841621))


def test_no_error_is_certainty_and_no_difference_none():
    error = student(0.0, 5)
    assert error.p_value(0.1) == 0.0 and error.p_value(0.0) == 1.0
    assert error.equivalence_p(0.1, 0.2) == 0.0 and error.equivalence_p(0.3, 0.2) == 1.0


def test_equality_is_rarely_claimed_of_rows_that_differ_by_the_margin():
    draws = np.random.default_rng(0).normal(1.0, 1.0, size=(20_000, 8))
    means, errors = draws.mean(axis=1), scipy.stats.sem(draws, axis=1)
    p = [student(e, 7).equivalence_p(m, 1.0) for m, e in zip(means, errors, strict=True)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.006)


def test_items_that_never_differ_show_equality_as_far_as_their_number_goes():
    assert items(0, 0, 100)[0].equivalence_p(0.0, 0.01) == pytest.approx(0.99**100)
    assert (
        items(0, 0, 300)[0].equivalence_p(0.0, 0.01) < 0.05 < items(0, 0, 298)[0].equivalence_p(0.0, 0.01)
    )


@pytest.mark.parametrize("n_flips", [0, 1, 2, 5])
def test_each_flip_makes_equality_less_sure_by_the_exact_binomial(n_flips):
    error, effect = items(n_flips, 0, 500)
    exact = scipy.stats.binom.cdf(n_flips, 500, 0.01)
    p = error.equivalence_p(effect, 0.01)
    assert p == pytest.approx(min(exact, p)) if n_flips > 2 else p == pytest.approx(exact)


@pytest.mark.parametrize("n", [100, 500])
def test_accuracies_that_differ_by_the_margin_are_called_equal_in_one_of_twenty_at_most(n):
    margin = 5 / n
    counts = np.random.default_rng(0).binomial(n, margin, size=2000)
    called = {k: items(k, 0, n)[0].equivalence_p(k / n, margin) < 0.05 for k in set(counts.tolist())}
    assert np.mean([called[k] for k in counts.tolist()]) <= 0.055


def test_a_short_task_without_flips_has_its_part_in_the_error_of_the_mean():
    tasks = [(np.ones(20), np.ones(20)), (np.ones(2000), np.ones(2000))]
    found = mean_accuracy_difference(tasks, rng=np.random.default_rng(0))
    half = math.hypot(1 - 0.025 ** (1 / 20), 1 - 0.025 ** (1 / 2000)) / 2
    assert (found.low, found.high) == pytest.approx((-half, half))
    assert found.error.equivalence_p(0.0, 0.01) > 0.4


@pytest.mark.parametrize("n_draws", [2, 3, 5])
@pytest.mark.parametrize("draw_sd", [1.0, 0.2])
def test_few_draws_claim_a_difference_where_there_is_none_in_one_of_twenty_at_most(n_draws, draw_sd):
    random, n_claims = np.random.default_rng(n_draws), 0
    for _ in range(1500):
        y = draw_sd * random.standard_normal((n_draws, 1)) + random.standard_normal((1, 30))
        y += 0.5 * random.standard_normal((n_draws, 30))
        n_claims += aggregate_draws(y).p_value < 0.05
    assert n_claims / 1500 <= 0.06


@pytest.mark.parametrize(("degrees", "expected"), [(1, 16.334), (2, 5.653), (4, 3.761)])
def test_what_would_be_found_by_few_draws_is_the_noncentral_ts(degrees, expected):
    least = student(1.0, degrees).detectable()
    assert least == pytest.approx(expected, abs=2e-3)
    rng = np.random.default_rng(1)
    t = rng.normal(least, 1.0, 100_000) / np.sqrt(rng.chisquare(degrees, 100_000) / degrees)
    assert np.mean(np.abs(t) > scipy.stats.t.ppf(0.975, degrees)) == pytest.approx(0.8, abs=0.005)


def test_one_more_source_widens_the_interval():
    alone = student(0.01, 10)
    wider = alone.beside(Student(stderr=0.02, degrees=4))
    assert wider.stderr == pytest.approx(math.hypot(0.01, 0.02))
    assert wider.interval(0.1)[0] < alone.interval(0.1)[0] < alone.interval(0.1)[1] < wider.interval(0.1)[1]
    assert wider.p_value(0.1) > alone.p_value(0.1)


def test_items_over_draws_have_the_error_of_their_means():
    """Items that differ in some draws have about Student's margin, not that of whole items."""
    random = np.random.default_rng(0)
    y = (random.random((5, 800)) < 0.1).astype(float) - (random.random((5, 800)) < 0.1)
    plain = y.mean(axis=0).std(ddof=1) / math.sqrt(800) * scipy.stats.t.ppf(0.975, 799)
    assert max(Items(y.mean(axis=0), np.ones(800)).margins(0.025)) == pytest.approx(plain, rel=0.05)
