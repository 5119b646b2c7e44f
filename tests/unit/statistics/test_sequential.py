"""Intervals that may be looked at after every draw, and equality within a margin, against closed forms."""

import dataclasses
import math

import numpy as np
import pytest

from faqbench.config.section import Margin, parse_margin
from faqbench.statistics.sequential import draws_margin, draws_needed, fewest_draws, look_at

ALPHA = 0.05
MOST = 80


def streams(effect, n_streams=4000, n=MOST, seed=0):
    return effect + np.random.default_rng(seed).standard_normal((n_streams, n))


def running(x):
    """Mean and standard deviation after every draw."""
    n = np.arange(1, x.shape[1] + 1)
    mean = x.cumsum(axis=1) / n
    squares = (x**2).cumsum(axis=1) - n * mean**2
    return n, mean, np.sqrt(np.maximum(squares, 0) / np.maximum(n - 1, 1))


def mean_draws(effect):
    n, mean, sd = running(streams(effect))
    decided = np.abs(mean) > draws_margin(n, sd, ALPHA)
    assert np.mean((decided & (mean < 0)).any(axis=1)) <= ALPHA / 2
    return float(np.where(decided.any(axis=1), decided.argmax(axis=1) + 1, MOST).mean())


def e_value(n, t, g=1.0):
    nu = n - 1
    inner = (1 + t**2 / nu) / (1 + t**2 / (nu * (1 + n * g)))
    return (1 + n * g) ** -0.5 * inner ** ((nu + 1) / 2)


@pytest.mark.parametrize("n", [5, 12, 80])
@pytest.mark.parametrize("alpha", [0.05, 0.01 / 3])
def test_the_margin_is_where_the_e_value_reaches_one_over_alpha(n, alpha):
    margin = float(draws_margin(n, 2.0, alpha))
    if math.isfinite(margin):
        assert e_value(n, math.sqrt(n) * margin / 2.0) == pytest.approx(1 / alpha)
    else:
        assert e_value(n, 1e9) < 1 / alpha


def test_looking_after_each_of_80_draws_misses_the_truth_in_at_most_5_percent_of_cases():
    n, mean, sd = running(streams(0.0, n_streams=10_000))
    missed = (np.abs(mean) > draws_margin(n, sd, ALPHA)).any(axis=1)
    assert 0.01 < missed.mean() <= ALPHA


@pytest.mark.parametrize(("effect", "knew_the_effect", "allowed_for_half"), [(1.0, 13, 44), (0.5, 44, 170)])
def test_it_decides_as_soon_as_designs_that_knew_the_effect(effect, knew_the_effect, allowed_for_half):
    """The fixed designs have 90 % power at the two-sided level of 5 %."""
    found = mean_draws(effect)
    assert found <= 1.1 * knew_the_effect
    assert found <= 0.35 * allowed_for_half


@pytest.mark.parametrize("item_sd", [0.0, 1.0, 12.0])
def test_windows_shared_by_all_draws_are_part_of_the_error(item_sd):
    """Draws, windows and their interaction; the interval of draws alone would miss nearly always."""
    rng = np.random.default_rng(1)
    n_streams, n_draws, n_items = 600, 30, 10
    missed = 0
    for _ in range(n_streams):
        items = item_sd * rng.standard_normal(n_items)
        draws = rng.standard_normal((n_draws, 1))
        y = items + draws + rng.standard_normal((n_draws, n_items))
        looks = [look_at(y[:n], alpha=ALPHA, draws_differ=True) for n in range(5, n_draws, 4)]
        missed += any(abs(look.mean) > look.margin for look in looks)
    assert missed / n_streams <= ALPHA


def test_nothing_is_decided_before_the_fifth_draw_at_5_percent():
    assert fewest_draws(0.05) == 5
    assert fewest_draws(0.05 / 3) == 6
    y = 1e6 + np.random.default_rng(0).standard_normal((4, 8))
    assert look_at(y, alpha=ALPHA, draws_differ=True).verdict() == "undecided"


def test_a_difference_is_lower_higher_equivalent_or_undecided():
    noise = np.random.default_rng(0).standard_normal((10, 20)) * 0.01
    for mean, margin, verdict in (
        (-1.0, 0.1, "lower"),
        (1.0, 0.1, "higher"),
        (0.0, 0.1, "equivalent"),
        (0.0, 0.001, "undecided"),
    ):
        centred = noise - noise.mean() + mean
        look = look_at(centred, alpha=ALPHA, draws_differ=True)
        assert look.verdict(margin) == verdict


def test_arms_that_give_equal_numbers_are_equivalent_without_a_margin():
    assert look_at(np.zeros((5, 10)), alpha=ALPHA, draws_differ=True).verdict() == "equivalent"


def test_arms_whose_items_did_not_happen_to_differ_are_not_equal_on_all_items():
    same, weights = np.zeros((5, 20)), np.ones(20)
    look = look_at(same, alpha=ALPHA, draws_differ=True, weights=weights)
    assert look.verdict() == "undecided" and look.verdict(margin=0.2) == "equivalent"
    assert look.items_margin == pytest.approx(1 - (ALPHA / 4) ** (1 / 20))  # for 0 of 20


def test_equality_of_accuracies_is_rarely_claimed_of_arms_that_differ_by_five_times_the_margin():
    rng, n_equal = np.random.default_rng(0), 0
    for _ in range(300):
        y = np.tile((rng.random(20) < 0.05).astype(float), (6, 1))
        look = look_at(y, alpha=ALPHA, draws_differ=True, weights=np.ones(20))
        n_equal += look.verdict(margin=0.01) == "equivalent"
    assert n_equal == 0


def test_without_calibration_windows_alone_decide_and_every_growth_costs_half_the_level():
    y = np.random.default_rng(0).standard_normal((1, 12))
    first, second = (look_at(y, alpha=ALPHA, draws_differ=False, n_growths=k) for k in (0, 1))
    assert first.draws_margin == 0.0
    assert first.items_margin < second.items_margin
    assert draws_needed(first, alpha=ALPHA) is None


def test_a_projection_says_how_many_draws_decide_if_mean_and_spread_stay():
    rng = np.random.default_rng(3)
    y = rng.standard_normal((8, 1)) + 0.01 * rng.standard_normal((8, 40))
    y += 0.6 - y.mean()
    look = look_at(y, alpha=ALPHA, draws_differ=True)
    needed = draws_needed(look, alpha=ALPHA)
    assert look.verdict() == "undecided" and needed is not None
    margins = [
        math.hypot(draws_margin(n, look.draw_sd, ALPHA), look.items_margin) for n in (needed - 1, needed)
    ]
    assert margins[1] < 0.6 <= margins[0]


def test_no_number_of_draws_makes_up_for_few_windows():
    rng = np.random.default_rng(4)
    y = 3 * rng.standard_normal(6) + 0.01 * rng.standard_normal((30, 6))
    y += 0.5 - y.mean()
    look = look_at(y, alpha=ALPHA, draws_differ=True)
    assert look.items_dominate and look.is_in_vain()
    assert draws_needed(look, alpha=ALPHA) is None


def test_more_draws_are_not_in_vain_while_the_mean_may_move_out_or_the_interval_into_the_margin():
    rng = np.random.default_rng(5)
    y = rng.standard_normal((6, 1)) + 0.5 * rng.standard_normal(8)
    look = look_at(y - y.mean(), alpha=ALPHA, draws_differ=True)
    assert look.verdict() == "undecided" and not look.is_in_vain()
    steady = dataclasses.replace(look, draws_margin=0.5 * look.items_margin)
    assert steady.is_in_vain() and not steady.is_in_vain(margin=2 * look.items_margin)


def test_one_item_and_values_that_are_not_finite_are_refused():
    for y in (np.zeros((3, 1)), np.full((3, 4), np.inf)):
        with pytest.raises(ValueError, match="finite"):
            look_at(y, alpha=ALPHA, draws_differ=True)


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
