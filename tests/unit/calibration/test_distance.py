import math

import pytest
import torch

from faqbench.calibration import activation_shift, token_divergence


def test_equal_frequencies_are_at_zero_and_disjoint_ones_at_one():
    tokens = torch.tensor([[1, 2], [3, 3]])
    assert token_divergence(tokens, tokens.flatten().repeat(3)) == 0.0
    assert token_divergence(tokens, tokens + 10) == pytest.approx(1.0)


def test_token_divergence_is_that_of_the_formula_and_symmetric():
    p, q = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1])
    middle = 0.625 * math.log2(0.625) + 0.375 * math.log2(0.375)
    own = 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)
    assert token_divergence(p, q) == pytest.approx(-middle + (own - 1.0) / 2)
    assert token_divergence(q, p) == pytest.approx(token_divergence(p, q))


def test_a_common_factor_is_no_shift():
    means = {"qkv": [torch.tensor([1.0, 5.0, 0.2])]}
    scaled = {"qkv": [3.0 * means["qkv"][0]]}
    assert activation_shift(scaled, means)["qkv"] == pytest.approx(0.0, abs=1e-6)


def test_the_shift_is_the_spread_of_the_log_ratio_averaged_over_blocks():
    reference = {"o": [torch.ones(4), torch.ones(4)]}
    means = {"o": [torch.tensor([1.0, 1.0, math.e, math.e]), torch.ones(4)]}
    assert activation_shift(means, reference) == {"o": pytest.approx(0.25)}


def test_a_massive_channel_does_not_speak_for_all():
    reference = torch.ones(1000)
    massive, moved = reference.clone(), reference.clone()
    massive[0] = 1000.0
    moved[::2] = 2.0
    shift = {
        k: activation_shift({k: [a]}, {k: [reference]})[k]
        for k, a in {"massive": massive, "moved": moved}.items()
    }
    assert shift["massive"] < shift["moved"]


def test_silent_channels_and_silent_roles_are_left_out():
    means = {"down": [torch.tensor([0.0, 1.0, 2.0])], "o": [torch.zeros(2)]}
    reference = {"down": [torch.tensor([1.0, 1.0, 2.0])], "o": [torch.ones(2)]}
    assert activation_shift(means, reference) == {"down": 0.0}
