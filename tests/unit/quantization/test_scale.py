"""AWQ's search in weight space, against a loop over tokens and candidates in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faqbench.quantization import Grid, fake_quantize, quantize, reproducible, scale
from faqbench.quantization.reproducible import halve
from faqbench.quantization.scale import (
    alpha_grid,
    first_smallest,
    gram_loss,
    scale_from_importance,
    search_scale,
)

GRID = Grid(bits=3, group_size=16, symmetric=False)
ALPHAS = alpha_grid(20)


class Problem:
    """Tokens with a few strong channels, and two weights that read them."""

    def __init__(self, seed, n_tokens=200, in_features=64, rows=(24, 8)):
        generator = torch.Generator().manual_seed(seed)
        size = torch.randn(in_features, generator=generator).mul(1.2).exp()
        self.x = torch.randn(n_tokens, in_features, generator=generator) * size
        self.weights = [torch.randn(n, in_features, generator=generator) for n in rows]
        self.gram = self.x.T @ self.x / n_tokens
        self.importance = self.x.abs().mean(dim=0)

    def search(self, alphas=ALPHAS, grid=GRID):
        grids = [grid] * len(self.weights)
        return search_scale(self.weights, grids, self.importance, self.gram, alphas)


def naive_round(w, bits, width):
    result = np.zeros_like(w)
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], width):
            g = w[row, start : start + width]
            step = max(g.max() - g.min(), 1e-5) / (2**bits - 1)
            zero = np.clip(-np.round(g.min() / step), 0, 2**bits - 1)
            codes = np.clip(np.round(g / step) + zero, 0, 2**bits - 1)
            result[row, start : start + width] = (codes - zero) * step
    return result


def naive_losses(problem, alphas):
    """AWQ's objective as the reference writes it: outputs on tokens, one candidate at a time."""
    x = problem.x.double().numpy()
    losses = []
    for alpha in alphas:
        s = np.maximum(np.abs(x).mean(axis=0) ** alpha, 1e-4)
        s = s / np.sqrt(s.max() * s.min())
        loss = 0.0
        for weight in problem.weights:
            w = weight.double().numpy()
            wanted, got = x @ w.T, x @ (naive_round(w * s, 3, 16) / s).T
            loss += ((got - wanted) ** 2).sum() / len(x)
        losses.append(loss)
    return losses


@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_exponent_is_that_of_a_loop_over_tokens_and_candidates(seed):
    problem = Problem(seed)
    losses = naive_losses(problem, ALPHAS)
    assert problem.search().alpha == ALPHAS[int(np.argmin(losses))]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.floats(0.0, 1.0))
def test_the_gram_loss_is_the_token_forward_loss(seed, alpha):
    problem = Problem(seed)
    s = scale_from_importance(problem.importance, alpha)
    weight = problem.weights[0]
    stand_in = fake_quantize(weight * s, GRID) / s
    x = problem.x.double()
    forward = (x @ (stand_in - weight).double().T).square().sum() / len(x)
    assert gram_loss(weight, s, halve(problem.gram), GRID) == pytest.approx(float(forward), rel=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_ranking_in_bfloat16_first_never_changes_the_chosen_exponent(monkeypatch, seed):
    problem = Problem(seed, in_features=128)
    monkeypatch.setattr(scale, "has_fast_bfloat16", lambda device: True)
    coarse = problem.search()
    monkeypatch.setattr(scale, "has_fast_bfloat16", lambda device: False)
    exact = problem.search()
    assert coarse.alpha == exact.alpha
    assert torch.equal(coarse.input_scale, exact.input_scale)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fast", [True, False])
def test_samples_of_rows_choose_what_all_rows_choose(monkeypatch, seed, fast):
    problem = Problem(seed, rows=(512, 128))
    problem.weights[0][seed] *= 30  # one row makes most of the loss
    monkeypatch.setattr(scale, "has_fast_bfloat16", lambda device: fast)
    assert scale._n_samples(problem.weights) > 1
    sampled = problem.search().alpha
    monkeypatch.setattr(scale, "_n_samples", lambda weights: 1)
    assert sampled == problem.search().alpha


@pytest.mark.parametrize("rows", [(512, 128), (40,)])
def test_samples_need_rows(rows):
    assert (scale._n_samples(Problem(0, rows=rows).weights) > 1) == (sum(rows) > 200)


def test_losses_of_rows_come_in_the_order_of_the_rows_whatever_their_grids():
    problem = Problem(0)
    half = halve(problem.gram)
    coarse = Grid(bits=2, group_size=32, symmetric=False)
    scales = [scale_from_importance(problem.importance, alpha) for alpha in ALPHAS]
    losses = scale._RowLosses(weights=problem.weights, grids=[GRID, coarse], input_scales=scales, half=half)
    rows = torch.tensor([30, 2, 25, 7])  # the first weight has 24
    got = losses([4, 11], rows)
    for line, alpha in zip(got, (ALPHAS[4], ALPHAS[11]), strict=True):
        s = scale_from_importance(problem.importance, alpha)
        wanted = [
            gram_loss(problem.weights[row >= 24][row % 24, None], s, half, [GRID, coarse][row >= 24])
            for row in rows.tolist()
        ]
        assert line.tolist() == pytest.approx(wanted, rel=1e-5)


def test_candidates_are_twentieths_from_zero():
    assert np.allclose(ALPHAS, np.arange(0, 1, 0.05))
    assert alpha_grid(0) == []


def test_no_candidate_means_no_scale():
    choice = Problem(0).search(alphas=[])
    assert (choice.alpha, choice.input_scale) == (None, None)


def test_one_candidate_is_taken_without_a_search():
    problem = Problem(0)
    choice = problem.search(alphas=[0.35])
    assert choice.alpha == 0.35
    assert torch.equal(choice.input_scale, scale_from_importance(problem.importance, 0.35))


@pytest.mark.parametrize("fast", [True, False])
def test_ties_go_to_the_smallest_exponent(monkeypatch, fast):
    monkeypatch.setattr(scale, "has_fast_bfloat16", lambda device: fast)
    problem = Problem(0)
    problem.importance = torch.ones_like(problem.importance)
    assert problem.search().alpha == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=2, max_size=20), st.sampled_from(ALPHAS))
def test_scales_are_finite_positive_and_centred_for_any_statistic(values, alpha):
    s = scale_from_importance(torch.tensor(values), alpha)
    assert s.isfinite().all() and (s > 0).all()
    assert float(s.max()) * float(s.min()) == pytest.approx(1.0, rel=1e-3)


def test_exponent_zero_scales_nothing_even_where_channels_are_dead():
    assert torch.equal(scale_from_importance(torch.tensor([0.0, 1.0, 50.0]), 0.0), torch.ones(3))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**20), st.integers(-4, 8))
def test_weights_times_a_power_of_two_keep_exponent_and_codes(seed, power):
    problem = Problem(seed)
    plain = problem.search()
    weight = problem.weights[0]
    problem.weights = [w * 2.0**power for w in problem.weights]
    scaled = problem.search()
    assert plain.alpha == scaled.alpha
    plain_codes = quantize(weight, GRID, input_scale=plain.input_scale)
    scaled_codes = quantize(problem.weights[0], GRID, input_scale=scaled.input_scale)
    assert torch.equal(plain_codes.qvalue, scaled_codes.qvalue)


@pytest.mark.parametrize("seed", range(5))
def test_permuting_output_rows_keeps_the_exponent(seed):
    problem = Problem(seed)
    before = problem.search().alpha
    problem.weights = [w.flip(0) for w in reversed(problem.weights)]
    assert problem.search().alpha == before


def test_the_loss_does_not_depend_on_the_size_of_chunks(monkeypatch):
    problem, s = Problem(0), torch.ones(64)
    whole = gram_loss(problem.weights[0], s, halve(problem.gram), GRID)
    monkeypatch.setitem(reproducible._CHUNK_ELEMENTS, "cpu", 1)
    in_rows = gram_loss(problem.weights[0], s, halve(problem.gram), GRID)
    assert in_rows == pytest.approx(whole, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from([2, 3, 4]))
def test_ranking_never_changes_the_chosen_exponent(seed, bits):
    problem, grid = Problem(seed), Grid(bits=bits, group_size=16, symmetric=False)
    half = halve(problem.gram)
    whole = []
    for alpha in ALPHAS:
        s = scale_from_importance(problem.importance, alpha)
        whole.append(sum(gram_loss(w, s, half, grid) for w in problem.weights))
    assert problem.search(grid=grid).alpha == ALPHAS[first_smallest(whole)]
