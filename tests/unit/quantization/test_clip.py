"""The clip search, against a loop over tokens, rows, groups and candidates; half of a Gram matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from faqbench.quantization import Grid, fake_quantize, quantize, reproducible
from faqbench.quantization.clip import closest_limit, group_grams, search_clip
from faqbench.quantization.reproducible import halve, quadratic_form, row_chunks

WIDTH, STEPS, MAX_SHRINK = 8, 10, 0.5


def problem(seed, rows=6, columns=24):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, columns, generator=generator) * torch.rand(columns, generator=generator)
    weight = torch.randn(rows, columns, generator=generator) ** 3
    return x, weight, x.T @ x / len(x)


def naive(x, weight, grid, input_scale):
    """llm-awq's `auto_clip` on all tokens, in float64."""
    x, weight = x.double() / input_scale.double(), weight.double() * input_scale.double()
    limits = torch.zeros(len(weight), weight.shape[1] // WIDTH)
    for row in range(len(weight)):
        for group in range(limits.shape[1]):
            cut = slice(group * WIDTH, (group + 1) * WIDTH)
            w, best = weight[row, cut], None
            for i in range(STEPS):
                limit = float(w.abs().max()) * (1 - i * MAX_SHRINK / STEPS)
                stand_in = fake_quantize(w.clamp(-limit, limit).unsqueeze(0), grid)[0]
                loss = float((x[:, cut] @ (stand_in - w)).square().mean())
                if best is None or loss < best:
                    best, limits[row, group] = loss, limit
    return limits


def searched(weight, gram, grid, input_scale=None, steps=STEPS):
    return search_clip(weight, gram, grid, input_scale=input_scale, steps=steps, max_shrink=MAX_SHRINK)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_clip_by_group_gram_is_clip_on_tokens(bits, symmetric):
    x, weight, gram = problem(bits)
    grid = Grid(bits=bits, group_size=WIDTH, symmetric=symmetric)
    torch.testing.assert_close(
        searched(weight, gram, grid), naive(x, weight, grid, torch.ones(24)), rtol=1e-5, atol=0
    )


def test_clip_of_a_scaled_weight_is_clip_on_tokens_of_the_scaled_input():
    x, weight, gram = problem(9)
    grid = Grid(bits=3, group_size=WIDTH, symmetric=False)
    s = x.abs().mean(dim=0).sqrt()
    torch.testing.assert_close(
        searched(weight, gram, grid, s), naive(x, weight, grid, s), rtol=1e-5, atol=0
    )


def test_one_step_keeps_the_full_range():
    _, weight, gram = problem(0)
    grid = Grid(bits=3, group_size=WIDTH, symmetric=False)
    largest = weight.view(6, 3, WIDTH).abs().amax(dim=-1)
    assert torch.equal(searched(weight, gram, grid, steps=1), largest)


def test_limits_lie_between_the_full_range_and_the_last_shrink():
    _, weight, gram = problem(1)
    grid = Grid(bits=2, group_size=WIDTH, symmetric=False)
    largest = weight.view(6, 3, WIDTH).abs().amax(dim=-1)
    share = searched(weight, gram, grid) / largest
    assert share.max() <= 1 and share.min() >= 1 - MAX_SHRINK * (STEPS - 1) / STEPS - 1e-6


def test_a_group_of_zeros_and_an_input_never_active_keep_the_full_range():
    _, weight, _ = problem(2)
    weight[0, :WIDTH] = 0
    limits = searched(weight, torch.zeros(24, 24), Grid(bits=3, group_size=WIDTH, symmetric=False))
    assert torch.equal(limits, weight.view(6, 3, WIDTH).abs().amax(dim=-1))


def test_permuting_output_rows_permutes_the_limits():
    _, weight, gram = problem(3)
    grid = Grid(bits=3, group_size=WIDTH, symmetric=False)
    assert torch.equal(searched(weight.flip(0), gram, grid), searched(weight, gram, grid).flip(0))


def test_one_group_per_row_reads_the_whole_gram_matrix():
    _, _, gram = problem(4)
    torch.testing.assert_close(group_grams(gram, None, 24), gram.unsqueeze(0), rtol=0, atol=0)


def test_group_grams_are_those_of_the_scaled_tokens():
    x, _, gram = problem(5)
    s = torch.rand(24, generator=torch.Generator().manual_seed(0)) + 0.5
    scaled = (x / s)[:, 8:16]
    torch.testing.assert_close(group_grams(gram, s, 8)[1], scaled.T @ scaled / len(x))


@pytest.fixture
def mse(compose):
    section = compose("model=tiny-llama", "quant=gptq-strong", "quant.mse.steps=16").quant

    def make(p):
        return section.model_copy(update={"mse": section.mse.model_copy(update={"p": p})})

    return make


def naive_mse(weight, weights, grid, p):
    """The grid search of the smallest sum of weighted errors, in float64."""
    limits = torch.zeros(len(weight), weight.shape[1] // WIDTH, dtype=torch.float64)
    for row in range(len(weight)):
        for group in range(limits.shape[1]):
            cut = slice(group * WIDTH, (group + 1) * WIDTH)
            w, best = weight[row, cut].double(), None
            for i in range(16):
                limit = float(w.abs().max()) * (1 - i * 0.8 / 16)
                error = fake_quantize(w.clamp(-limit, limit).unsqueeze(0), grid)[0] - w
                loss = float((weights[cut].double() * error.abs() ** p).sum())
                if best is None or loss < best:
                    best, limits[row, group] = loss, limit
    return limits.float()


@pytest.mark.parametrize("p", [2.0, 2.4])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(
    "grid",
    [
        Grid(bits=3, group_size=WIDTH, symmetric=False),
        Grid(bits=2, group_size=WIDTH, symmetric=True),
        Grid(bits=4, group_size=WIDTH, symmetric=True, symmetric_grid="full_range"),
    ],
)
def test_the_closest_range_is_that_of_a_loop_over_rows_and_groups(mse, grid, weighted, p):
    _, weight, gram = problem(6)
    weights = gram.diagonal() if weighted else torch.ones(24)
    found = closest_limit(weight, gram if weighted else None, grid, None, mse(p))
    torch.testing.assert_close(found, naive_mse(weight, weights, grid, p), rtol=1e-5, atol=0)


def test_the_closest_range_of_a_scaled_weight_is_that_of_the_scaled_problem(mse):
    _, weight, gram = problem(7)
    grid = Grid(bits=3, group_size=WIDTH, symmetric=False)
    s = torch.rand(24, generator=torch.Generator().manual_seed(0)) + 0.5
    found = closest_limit(weight, gram, grid, s, mse(2.4))
    scaled = closest_limit(weight * s, gram / torch.outer(s, s), grid, None, mse(2.4))
    torch.testing.assert_close(found, scaled)


@pytest.mark.parametrize("bits", [2, 3])
def test_the_closest_range_is_closer_than_the_full_one(mse, bits):
    _, weight, _ = problem(8)
    grid = Grid(bits=bits, group_size=WIDTH, symmetric=False)
    limit = closest_limit(weight, None, grid, None, mse(2.0))
    clipped = (quantize(weight, grid, limit=limit).dequantize() - weight).square().sum()
    assert clipped < (fake_quantize(weight, grid) - weight).square().sum()


def test_awqs_search_alone_leaves_q_and_k_as_they_are(quantized):
    awq, strong = quantized("awq", "bits=2"), quantized("gptq-strong", "bits=2")
    assert awq.report("self_attn.q_proj").clipped_frac == 0 < awq.report("mlp.up_proj").clipped_frac
    assert strong.report("self_attn.q_proj").clipped_frac > 0


def weight_and_gram(seed, rows, in_features):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * in_features, in_features, generator=generator)
    x *= torch.randn(in_features, generator=generator).exp()
    return torch.randn(rows, in_features, generator=generator), x.T @ x / len(x)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 9), st.integers(1, 70), st.integers(1, 80))
def test_half_of_the_products_give_the_whole_form(seed, rows, in_features, width):
    error, gram = weight_and_gram(seed, rows, in_features)
    wanted = float((error.double() @ gram.double() * error.double()).sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(reproducible._BLOCK_COLUMNS, "cpu", width)
        assert float(quadratic_form(error, halve(gram))) == pytest.approx(wanted, rel=1e-4)


def test_bfloat16_products_are_good_to_a_thousandth():
    error, gram = weight_and_gram(0, 200, 256)
    exact, coarse = (quadratic_form(error, halve(gram, t)) for t in (torch.float32, torch.bfloat16))
    assert float(coarse) == pytest.approx(float(exact), rel=2e-3)


def test_the_gram_matrix_is_left_as_it_was():
    _, gram = weight_and_gram(0, 1, 300)
    before = gram.clone()
    halve(gram)
    assert torch.equal(gram, before)


def test_chunks_of_rows_are_the_whole_weight_in_order(monkeypatch):
    monkeypatch.setitem(reproducible._CHUNK_ELEMENTS, "cpu", 5 * 64)
    weight, _ = weight_and_gram(0, 24, 64)
    chunks = row_chunks(weight)
    assert torch.equal(torch.cat(chunks), weight)
    assert [len(c) for c in chunks] == [5, 5, 5, 5, 4]
