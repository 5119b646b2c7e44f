"""The clip search, against a loop over tokens, rows, groups and candidates."""

import pytest
import torch

from faqbench.quantization import Grid, fake_quantize
from faqbench.quantization.clip import group_grams, search_clip

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
    return search_clip(
        weight, gram, grid, input_scale=input_scale, steps=steps, max_shrink=MAX_SHRINK
    )


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
