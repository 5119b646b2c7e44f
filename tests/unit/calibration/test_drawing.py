"""Drawing a calibration set, what the set says of itself, and how far it lies from another."""

import hashlib
import math

import numpy as np
import pytest
import torch

from faqbench.calibration import (
    activation_shift,
    draw,
    draw_evaluation,
    draw_without_text,
    load_calibration_set,
    request_of,
    save_calibration_set,
    token_divergence,
)
from faqbench.calibration.drawing import apportion, interleave
from faqbench.config import UserError


@pytest.fixture
def texts(toy):
    return toy().texts


def spelled(tokens):
    return "".join(map(chr, tokens.flatten().tolist()))


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(drawn):
    assert torch.equal(drawn().tokens, drawn().tokens)
    assert drawn().fingerprint != drawn(seed=1).fingerprint


def test_windows_are_one_running_text_of_whole_documents_in_shuffled_order(drawn, texts):
    calibration = drawn(n_samples=8)
    documents = spelled(calibration.tokens).split("\n\n")
    assert len(documents) == calibration.n_texts_used < len(texts)
    assert set(documents[:-1]) <= set(texts) and documents[:3] != list(texts[:3])


def test_the_texts_of_a_set_are_those_in_its_windows(drawn):
    calibration = drawn(n_samples=8)
    documents = spelled(calibration.tokens).split("\n\n")
    assert list(calibration.texts[:-1]) == documents[:-1]
    assert calibration.texts[-1].startswith(documents[-1])


def test_shape_and_type_are_what_a_model_takes(drawn):
    calibration = drawn(n_samples=3, seq_len=10)
    assert (tuple(calibration.tokens.shape), calibration.tokens.dtype) == ((3, 10), torch.int64)
    assert (calibration.window_start, calibration.domain) == ("cut", "toy")


def test_more_windows_of_one_seed_begin_with_the_fewer(drawn):
    assert torch.equal(drawn(n_samples=8).tokens[:4], drawn(n_samples=4).tokens)


def test_drawing_neither_reads_nor_moves_global_random_state(drawn):
    np.random.seed(3)
    torch.manual_seed(3)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = drawn()
    assert np.array_equal(np.random.get_state()[1], states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    np.random.seed(4)
    assert drawn().fingerprint == first.fingerprint


def test_the_fingerprint_can_be_made_by_anyone_and_knows_the_shape(drawn):
    calibration = drawn()
    content = b"(4, 16)" + calibration.tokens.numpy().tobytes()
    assert calibration.fingerprint == hashlib.sha256(content).hexdigest()
    assert drawn(n_samples=8, seq_len=8).fingerprint != calibration.fingerprint


def test_too_few_tokens_gives_both_numbers_and_the_way_out(drawn):
    with pytest.raises(UserError, match=r"has 14 tokens, but n_samples \* seq_len = 4 \* 16 = 64"):
        drawn(texts=["short", "texts"])
    with pytest.raises(UserError, match="allow_repeat=true"):
        drawn(texts=["short", "texts"])


def test_exactly_enough_tokens_are_enough(drawn):
    assert drawn(texts=["x" * 62]).tokens.shape == (4, 16)


def test_texts_repeat_when_allowed_and_the_share_is_known(drawn):
    calibration = drawn(texts=["short", "texts"], allow_repeat=True)
    assert spelled(calibration.tokens).count("short") >= 4
    assert calibration.repeated_share == pytest.approx((64 - 14) / 64)
    assert (drawn().repeated_share, calibration.n_texts_used) == (0.0, 2)


def test_a_bos_token_begins_every_window_and_counts_in_its_length(drawn):
    plain, with_bos = drawn(seq_len=15), drawn(seq_len=16, bos=1)
    assert with_bos.tokens[:, 0].tolist() == [1] * 4
    assert torch.equal(with_bos.tokens[:, 1:], plain.tokens)
    assert with_bos.window_start == "bos+cut"


def test_a_tokenizer_without_bos_cannot_give_one(compose, tokenizer):
    section = compose("model=tiny-llama", "calibration.add_bos=true")
    tokenizer.bos_token_id = None
    with pytest.raises(UserError, match=r"calibration\.add_bos=true needs a tokenizer with a BOS"):
        request_of(section.calibration, section.scenario, 4, tokenizer)


def test_documents_apart_are_windows_that_begin_a_document_and_short_ones_are_passed_over(drawn, texts):
    calibration = drawn(apart=True, seq_len=30)
    windows = [spelled(row) for row in calibration.tokens]
    assert all(any(text.startswith(w) for text in texts) for w in windows)
    assert len(set(windows)) == 4 and calibration.window_start == "document"
    assert all(len(text) >= 30 for text in calibration.texts)


def test_too_few_long_documents_gives_both_numbers(drawn):
    with pytest.raises(UserError, match=r"has 1 documents of 16 tokens or more, but n_samples=4"):
        drawn(texts=["short", "x" * 20], apart=True)


def test_a_mixture_gives_each_domain_its_share_of_the_windows_it_would_give_alone(
    toy, tokenizer, request_for
):
    a, b = toy(domain="a"), toy([f"other {i} text of b" for i in range(40)], domain="b")
    mixed = draw([(a, 0.75), (b, 0.25)], tokenizer, request_for(n_samples=8))
    alone = draw([(a, 1.0)], tokenizer, request_for(n_samples=6))
    assert dict(mixed.n_windows_of) == {"a": 6, "b": 2}
    rows = {tuple(row.tolist()) for row in mixed.tokens}
    assert {tuple(row.tolist()) for row in alone.tokens} <= rows
    assert (mixed.domain, len(mixed.sources)) == ("a 0.75 + b 0.25", 2)


def test_too_few_tokens_of_a_mixtures_domain_names_it(toy, tokenizer, request_for):
    parts = [(toy(domain="a"), 0.5), (toy(["tiny"], domain="b"), 0.5)]
    with pytest.raises(UserError, match=r"'b' has 6 tokens, but n_samples \* seq_len = 2 \* 16"):
        draw(parts, tokenizer, request_for())


@pytest.mark.parametrize(
    ("shares", "n", "counts"),
    [
        ([0.7, 0.3], 10, [7, 3]),
        ([0.5, 0.5], 3, [2, 1]),
        ([0.7, 0.3], 1, [1, 0]),
        ([1 / 3] * 3, 8, [3, 3, 2]),
        ([0.1] * 10, 32, [4, 4, *[3] * 8]),
    ],
)
def test_shares_become_whole_windows_by_the_largest_remainder(shares, n, counts):
    assert apportion(shares, n) == counts


def test_stacked_pieces_are_dealt_evenly():
    assert interleave([4, 2]) == [0, 4, 1, 2, 5, 3]
    assert interleave([3]) == [0, 1, 2]


def test_random_tokens_come_from_the_vocabulary_without_special_tokens(tokenizer, request_for):
    calibration = draw_without_text(tokenizer, request_for(n_samples=64, bos=1))
    inside = calibration.tokens[:, 1:]
    assert set(inside.flatten().tolist()) == set(range(128)) - {1, 2}
    assert (calibration.texts, calibration.window_start) == ((), "bos+none")


def test_a_leak_is_windows_of_the_evaluations_own_tokens_by_seed(tokenizer, request_for):
    protocols = {"heldout-toy-8": torch.arange(40).view(5, 8)}
    calibration = draw_evaluation(protocols, ["a text"], tokenizer, request_for(4, 10))
    assert {tuple(row.tolist()) for row in calibration.tokens} == {
        tuple(range(i, i + 10)) for i in (0, 10, 20, 30)
    }
    other = draw_evaluation(protocols, [], tokenizer, request_for(4, 10, seed=1))
    assert not torch.equal(other.tokens, calibration.tokens)
    assert calibration.texts == ("a text",)


def test_a_leak_of_too_few_tokens_gives_both_numbers(tokenizer, request_for):
    protocols = {"heldout-toy-8": torch.arange(40).view(5, 8)}
    with pytest.raises(UserError, match=r"which has 40 tokens, but n_samples.*= 5 \* 10 = 50"):
        draw_evaluation(protocols, [], tokenizer, request_for(5, 10))
    repeated = draw_evaluation(protocols, [], tokenizer, request_for(5, 10, allow_repeat=True))
    assert repeated.repeated_share == pytest.approx(0.2)


def test_a_set_comes_back_from_disk_as_it_was(toy, tokenizer, request_for, tmp_path):
    parts = [(toy(domain="a"), 0.5), (toy([f"b number {i}, a text" for i in range(9)], "b"), 0.5)]
    calibration = draw(parts, tokenizer, request_for())
    save_calibration_set(calibration, tmp_path)
    again = load_calibration_set(tmp_path)
    assert torch.equal(again.tokens, calibration.tokens)
    one, other = vars(calibration) | {"tokens": None}, vars(again) | {"tokens": None}
    assert one == other


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
