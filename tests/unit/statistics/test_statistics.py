"""Properties first, then the coverage of every interval by simulation."""

import math

import numpy as np
import pytest

from faqbench.statistics import (
    Error,
    Student,
    accuracy_difference,
    accuracy_with_stderr,
    aggregate_draws,
    block_length_for,
    detectable_accuracy_difference,
    detectable_difference,
    holm,
    mcnemar,
    mean_accuracy_difference,
    mean_difference,
    mean_with_stderr,
    perplexity_with_stderr,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def binary(p, n, seed):
    return (rng(seed).random(n) < p).astype(float)


def test_perplexity_of_a_uniform_guess_is_the_vocabulary_size():
    value, stderr = perplexity_with_stderr(np.full((5, 7), math.log(100.0)))
    assert value == pytest.approx(100.0)
    assert stderr == pytest.approx(0.0)


def test_perplexity_sums_half_precision_in_double_precision():
    nll = np.full((4, 60_000), 2.5, dtype=np.float16)
    assert perplexity_with_stderr(nll)[0] == pytest.approx(math.exp(2.5), rel=1e-12)


def test_perplexity_of_one_window_has_no_standard_error():
    assert math.isnan(perplexity_with_stderr(np.ones((1, 9)))[1])


def test_perplexity_stderr_agrees_with_the_spread_of_repeated_measurements():
    random = rng(1)
    runs = [perplexity_with_stderr(random.normal(3.0, 0.5, size=(50, 4))) for _ in range(400)]
    spread = np.std([value for value, _ in runs])
    assert np.mean([stderr for _, stderr in runs]) == pytest.approx(spread, rel=0.1)


def test_a_run_compared_with_itself_has_ratio_one_and_no_evidence():
    nll = rng().normal(3.0, 1.0, size=(12, 5))
    result = mean_difference(nll, nll, rng=rng())
    assert (*result.ratio, result.p_value) == (1.0, 1.0, 1.0, 1.0)


def test_swapping_the_runs_inverts_the_ratio_and_its_interval():
    a, b = rng(1).normal(3.0, 0.3, (20, 8)), rng(2).normal(3.1, 0.3, (20, 8))
    one, other = mean_difference(a, b, rng=rng()), mean_difference(b, a, rng=rng())
    assert one.ratio == pytest.approx([1 / x for x in (other.ratio[0], *other.ratio[:0:-1])])
    assert one.p_value == pytest.approx(other.p_value)


def test_the_ratio_is_the_quotient_of_the_two_perplexities():
    a, b = rng(1).normal(3.0, 0.3, (20, 8)), rng(2).normal(3.1, 0.3, (20, 8))
    quotient = perplexity_with_stderr(a)[0] / perplexity_with_stderr(b)[0]
    assert mean_difference(a, b, rng=rng()).ratio[0] == pytest.approx(quotient)


def test_the_same_seed_gives_the_same_interval():
    a, b = rng(1).normal(3.0, 0.3, (20, 8)), rng(2).normal(3.1, 0.3, (20, 8))
    assert mean_difference(a, b, rng=rng(7)) == mean_difference(a, b, rng=rng(7))


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1, 0.4])
def test_the_ratio_interval_excludes_one_exactly_when_p_is_below_five_percent(shift):
    a = rng(3).normal(3.0, 0.3, (30, 4))
    result = mean_difference(a, a + rng(4).normal(shift, 0.5, (30, 4)), rng=rng())
    assert (result.p_value < 0.05) == (not result.ratio[1] <= 1 <= result.ratio[2])


def test_pairing_finds_what_shared_spread_hides():
    texts = rng(1).normal(3.0, 1.0, (40, 1))
    a, b = texts + rng(2).normal(0, 0.02, (40, 1)), texts + 0.05 + rng(3).normal(0, 0.02, (40, 1))
    assert mean_difference(a, b, rng=rng()).p_value < 1e-4
    (value_a, error_a), (value_b, _) = perplexity_with_stderr(a), perplexity_with_stderr(b)
    assert abs(value_a - value_b) < error_a


def test_a_large_effect_on_few_windows_survives_a_correction_for_many_comparisons():
    a = rng(1).normal(3.0, 0.3, (40, 4))
    result = mean_difference(a + 0.5 + rng(2).normal(0, 0.05, (40, 4)), a, rng=rng())
    assert result.p_value * 100 < 0.05


@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_the_ratio_interval_covers_the_truth_in_about_95_percent(correlation):
    random, covered, n = rng(5), 0, 40
    for _ in range(400):
        noise = random.normal(size=n)
        for i in range(1, n):
            noise[i] = correlation * noise[i - 1] + math.sqrt(1 - correlation**2) * noise[i]
        result = mean_difference(
            (3.1 + 0.1 * noise)[:, None], np.full((n, 1), 3.0), rng=random, n_resamples=300
        )
        covered += result.ratio[1] <= math.exp(0.1) <= result.ratio[2]
    assert (0.92 if correlation == 0 else 0.88) <= covered / 400 <= 0.985


@pytest.mark.parametrize(("n", "length"), [(1, 1), (8, 2), (40, 3), (1000, 10)])
def test_block_length_grows_as_the_cube_root(n, length):
    assert block_length_for(n) == length


def divergences(random, scale, shared):
    """Per-token divergences of a run: skewed, and large where the text is hard for every run."""
    return scale * shared * random.gamma(0.5, 1.0, size=(60, 30))


def test_a_divergence_is_compared_in_its_own_unit():
    shared = rng(1).gamma(2.0, 1.0, (60, 1))
    a, b = divergences(rng(2), 0.2, shared), divergences(rng(3), 0.1, shared)
    found = mean_difference(a, b, rng=rng())
    (mean_a, _), (mean_b, stderr_b) = mean_with_stderr(a), mean_with_stderr(b)
    assert found.difference == pytest.approx(mean_a - mean_b)
    assert stderr_b == pytest.approx(b.mean(axis=1).std(ddof=1) / math.sqrt(60))
    assert found.low > 0 and found.p_value < 1e-4


def test_agreement_is_compared_from_its_bytes():
    a, b = np.ones((10, 4), np.uint8), np.ones((10, 4), np.uint8)
    b[::2, 0] = 0
    assert mean_difference(a, b, rng=rng()).difference == pytest.approx(0.125)


def test_the_interval_of_a_skewed_divergence_covers_the_truth_in_about_95_percent():
    random, covered = rng(8), 0
    for _ in range(400):
        shared = random.gamma(2.0, 1.0, (60, 1))
        a, b = divergences(random, 0.2, shared), divergences(random, 0.1, shared)
        found = mean_difference(a, b, rng=random, n_resamples=300)
        covered += found.low <= 0.1 <= found.high
    assert 0.91 <= covered / 400 <= 0.985


def test_unequal_shapes_and_infinite_losses_are_refused():
    with pytest.raises(ValueError, match="paired"):
        mean_difference(np.ones((3, 2)), np.ones((4, 2)), rng=rng())
    with pytest.raises(ValueError, match="finite"):
        mean_difference(np.full((3, 2), np.inf), np.ones((3, 2)), rng=rng())


def test_accuracy_stderr_is_that_of_lm_eval():
    value, stderr = accuracy_with_stderr(np.array([1, 1, 1, 0]))
    assert value == 0.75
    assert stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))


def test_mcnemar_is_the_exact_binomial_of_the_disagreements():
    a, b = np.array([1] * 8 + [0] * 2 + [1] * 90), np.array([0] * 8 + [1] * 2 + [1] * 90)
    result = mcnemar(a, b)
    assert (result.n_only_a, result.n_only_b) == (8, 2)
    assert result.p_value == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2**10)


def test_mcnemar_agrees_with_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar as reference

    a, b = binary(0.6, 300, 1), binary(0.5, 300, 2)
    table = [[int(((a == i) & (b == j)).sum()) for j in (1, 0)] for i in (1, 0)]
    assert mcnemar(a, b).p_value == pytest.approx(reference(table, exact=True).pvalue)


def test_items_that_never_differ_leave_an_interval_of_honest_width():
    a = binary(0.6, 100, 1)
    result = accuracy_difference(a, a, rng=rng())
    assert result.p_value == 1.0
    assert result.high == -result.low == pytest.approx(1 - 0.025 ** (1 / 100))


def test_swapping_the_runs_changes_the_sign_of_the_accuracy_difference():
    a, b = binary(0.6, 200, 1), binary(0.5, 200, 2)
    one, other = accuracy_difference(a, b, rng=rng()), accuracy_difference(b, a, rng=rng())
    assert one.difference == -other.difference
    assert one.p_value == other.p_value


def test_the_accuracy_interval_covers_the_truth_in_about_95_percent():
    random, covered = rng(6), 0
    for _ in range(400):
        base = random.random(200)
        a, b = base < 0.6, np.where(random.random(200) < 0.8, base, random.random(200)) < 0.55
        result = accuracy_difference(a, b, rng=random, n_resamples=500)
        covered += result.low <= 0.05 <= result.high
    assert 0.92 <= covered / 400 <= 0.98


def test_mean_accuracy_weighs_tasks_not_items():
    small = (np.ones(10), np.zeros(10))
    large = (np.ones(1000), np.ones(1000))
    assert mean_accuracy_difference([small, large], rng=rng()).difference == pytest.approx(0.5)


def test_the_interval_of_a_mean_over_tasks_covers_the_truth_in_about_95_percent():
    random, covered = rng(9), 0
    truth = np.mean([0.05, 0.0, -0.02])
    for _ in range(400):
        tasks = []
        for n, gain in ((100, 0.05), (300, 0.0), (200, -0.02)):
            base = random.random(n)
            a = np.where(random.random(n) < 0.8, base, random.random(n)) < 0.5 + gain
            tasks.append((a, base < 0.5))
        found = mean_accuracy_difference(tasks, rng=random, n_resamples=500)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_mcnemar_claims_a_difference_that_is_not_there_in_at_most_5_percent():
    random = rng(10)
    counts = random.binomial(40, 0.5, size=1000)
    p_of = {
        n: mcnemar(np.repeat([1, 0], [n, 40 - n]), np.repeat([0, 1], [n, 40 - n])).p_value
        for n in range(41)
    }
    assert np.mean([p_of[int(n)] < 0.05 for n in counts]) <= 0.05


def test_holm_keeps_the_chance_of_any_false_claim_in_a_table_below_5_percent():
    p_values = rng(11).random((4000, 10))
    for row in p_values:
        assert min(holm(row.tolist())) == pytest.approx(min(1.0, 10 * row.min()))
    any_claim = 10 * p_values.min(axis=1) < 0.05
    assert 0.04 <= any_claim.mean() <= 0.06  # not the 40 % of uncorrected tests


def test_holm_is_the_step_down_correction_and_keeps_the_order():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_holm_agrees_with_statsmodels_to_the_bit_ties_and_bounds_included():
    from statsmodels.stats.multitest import multipletests

    tables = [rng(12).random(200) ** 4, np.round(rng(13).random(200), 2), [0.0, 1.0, 1.0, 0.5]]
    for p_values in tables:
        expected = multipletests(p_values, method="holm")[1].tolist()
        assert holm(list(map(float, p_values))) == expected


def test_holm_leaves_untested_comparisons_out_of_the_count():
    result = holm([0.04, math.nan])
    assert result[0] == pytest.approx(0.04)
    assert math.isnan(result[1])


def test_one_draw_is_the_plain_t_interval_over_items():
    from scipy.stats import ttest_1samp

    values = rng(1).normal(0.2, 1.0, 50)
    result = aggregate_draws(values[None, :])
    reference = ttest_1samp(values, 0.0)
    assert result.p_value == pytest.approx(reference.pvalue)
    assert math.isnan(result.draw_variance)


def test_identical_draws_have_no_draw_variance_and_the_error_of_their_items():
    values = rng(1).normal(0.2, 1.0, 50)
    result = aggregate_draws(np.tile(values, (3, 1)))
    assert result.draw_variance == pytest.approx(0.0)
    assert result.stderr == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_variance_components_are_found_again():
    random, found = rng(2), []
    for _ in range(200):
        y = random.normal(0, 0.5, (6, 1)) + random.normal(0, 2.0, (1, 60)) + random.normal(0, 1, (6, 60))
        found.append(aggregate_draws(y))
    assert np.mean([f.draw_variance for f in found]) == pytest.approx(0.25, rel=0.15)
    assert np.mean([f.item_variance for f in found]) == pytest.approx(4.0, rel=0.1)
    assert np.mean([f.residual_variance for f in found]) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("draw_sd", "item_sd"), [(0.3, 0.5), (0.0, 1.0), (1.0, 0.2)])
def test_the_interval_over_draws_covers_the_truth_in_about_95_percent(draw_sd, item_sd):
    random, covered = rng(3), 0
    for _ in range(400):
        y = (
            1.0
            + random.normal(0, draw_sd, (4, 1))
            + random.normal(0, item_sd, (1, 40))
            + random.normal(0, 1, (4, 40))
        )
        result = aggregate_draws(y)
        covered += result.low <= 1.0 <= result.high
    assert 0.92 <= covered / 400 <= 0.995


def test_the_detectable_difference_shrinks_with_the_root_of_n():
    few, many = detectable_difference(100, 1.0), detectable_difference(400, 1.0)
    assert few / many == pytest.approx(2.0, rel=0.01)
    assert few == pytest.approx(Error((Student(stderr=0.1, degrees=99),)).detectable(), rel=1e-4)


def test_the_detectable_accuracy_difference_is_found_in_four_of_five_simulations():
    difference = detectable_accuracy_difference(400, 0.2)
    p_a, p_b = (0.2 + difference) / 2, (0.2 - difference) / 2
    draws = rng(4).multinomial(400, [p_a, p_b, 0.8], size=500)
    cache = {}
    for only_a, only_b, _ in draws:
        pair = (int(only_a), int(only_b))
        cache.setdefault(
            pair,
            mcnemar(
                np.repeat([1, 0, 1], [*pair, 400 - sum(pair)]),
                np.repeat([0, 1, 1], [*pair, 400 - sum(pair)]),
            ).p_value,
        )
    found = np.mean([cache[(int(a), int(b))] < 0.05 for a, b, _ in draws])
    assert 0.7 <= found <= 0.87


def test_a_detectable_accuracy_difference_never_exceeds_the_disagreement():
    assert detectable_accuracy_difference(10, 0.05) == 0.05


def test_a_perplexity_is_what_its_logarithm_says_and_infinite_beyond_what_records_hold():
    assert perplexity_with_stderr(np.full((3, 2), 229.0))[0] == math.exp(229.0)
    value, stderr = perplexity_with_stderr(np.full((3, 2), 690.0))
    assert math.isinf(value) and math.isnan(stderr)
    ratio = mean_difference(np.full((4, 2), 2000.0), np.full((4, 2), 1.0), rng=rng())
    assert ratio.difference == 1999.0 and math.isinf(ratio.ratio[0])
