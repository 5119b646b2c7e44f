"""Scenarios: what each does to texts and to tokens."""

import numpy as np
import pytest
import torch

from faqbench.calibration import draw
from faqbench.calibration.scenarios import change_tokens, draw_order, of_length, rarity_of
from faqbench.config import UserError
from faqbench.config.calibration import matched


def scenario(**changes):
    return matched().model_copy(update=changes)


def test_lengths_keep_the_texts_in_between_in_order():
    texts = ["x" * n for n in (1, 5, 3, 9)]
    kept = of_length(texts, scenario(min_characters=3, max_characters=5))
    assert kept == ["xxxxx", "xxx"]


def test_lengths_that_leave_no_text_are_one_sentence():
    with pytest.raises(UserError, match="leaves none of 1 texts: none has 7 to inf characters"):
        of_length(["x"], scenario(min_characters=7))


def test_short_documents_that_are_too_few_give_both_numbers_and_the_scenario(drawn):
    with pytest.raises(UserError, match=r"under scenario=short has \d+ tokens, but .* = 640 are"):
        drawn(n_samples=40, name="short", max_characters=18)


def test_a_length_power_draws_long_texts_first(drawn):
    def mean_length(**changes):
        texts = [t for seed in range(20) for t in drawn(seed=seed, **changes).texts]
        return np.mean([len(t) for t in texts])

    assert mean_length(length_power=4.0) > mean_length() > mean_length(length_power=-4.0)


def test_a_power_of_zero_is_the_plain_draw(drawn):
    same = drawn(length_power=0.0, rarity=0.0, copies=1, noise_rate=0.0)
    assert same.fingerprint == drawn().fingerprint


def test_weighted_drawing_takes_texts_first_with_the_probabilities_of_their_weights():
    rng = np.random.Generator(np.random.PCG64(0))
    log_weights = np.log([1.0, 2.0, 7.0])
    first = [draw_order(3, log_weights, rng)[0] for _ in range(4000)]
    shares = np.bincount(first, minlength=3) / 4000
    assert np.allclose(shares, [0.1, 0.2, 0.7], atol=0.03)


def test_every_text_is_in_a_weighted_order_once():
    rng = np.random.Generator(np.random.PCG64(0))
    order = draw_order(100, np.linspace(-300, 300, 100), rng)
    assert sorted(order) == list(range(100))


def test_rarity_is_the_mean_information_of_a_texts_tokens():
    assert np.allclose(rarity_of([[0, 0, 0], [1]]), [np.log2(4 / 3), 2.0])


def test_rare_tokens_are_preferred(drawn):
    texts = [f"common words {i} " for i in range(60)] + [f"zq{i}xjk~{i}" for i in range(20)]
    odd = sum("zq" in t for seed in range(20) for t in drawn(texts, seed=seed, rarity=3.0).texts)
    plain = sum("zq" in t for seed in range(20) for t in drawn(texts, seed=seed).texts)
    assert odd > 2 * plain


def test_copies_are_the_same_texts_several_times_and_as_many_tokens(drawn):
    once, copied = drawn(n_samples=16), drawn(n_samples=16, copies=8)
    assert copied.tokens.shape == once.tokens.shape
    assert copied.n_texts_used < once.n_texts_used / 3
    assert set(copied.texts) <= set(once.texts)
    assert copied.repeated_share > 0.5


def test_scenarios_compose_with_documents_apart_and_bos(drawn):
    calibration = drawn(apart=True, bos=1, seq_len=17, copies=2, min_characters=20)
    assert tuple(calibration.tokens.shape) == (4, 17)
    assert calibration.tokens[:, 0].tolist() == [1] * 4
    assert calibration.window_start == "bos+document"


VOCABULARY = np.arange(1000, 2000)


def changed(windows, seed=0, **changes):
    return change_tokens(windows, matched().model_copy(update=changes), VOCABULARY, seed)


def windows():
    return np.arange(2000).reshape(20, 100) % 900


def test_matched_changes_nothing():
    assert np.array_equal(changed(windows()), windows())


def test_shuffling_keeps_the_tokens_of_every_window_and_no_order():
    shuffled = changed(windows(), shuffle_tokens=True)
    assert np.array_equal(np.sort(shuffled, axis=1), np.sort(windows(), axis=1))
    assert (shuffled == windows()).mean() < 0.05


def test_noise_replaces_the_asked_share_by_tokens_of_the_vocabulary():
    noisy = changed(windows(), noise_rate=0.25)
    hit = noisy != windows()
    assert abs(hit.mean() - 0.25) < 0.03
    assert np.isin(noisy[hit], VOCABULARY).all()


def test_all_noise_leaves_nothing():
    assert np.isin(changed(windows(), noise_rate=1.0), VOCABULARY).all()


def test_changes_depend_on_the_seed_alone():
    first = changed(windows(), noise_rate=0.25, shuffle_tokens=True)
    assert np.array_equal(first, changed(windows(), noise_rate=0.25, shuffle_tokens=True))
    assert not np.array_equal(first, changed(windows(), 1, noise_rate=0.25, shuffle_tokens=True))


def test_a_bos_token_is_neither_shuffled_nor_replaced(toy, tokenizer, request_for):
    request = request_for(bos=1, shuffle_tokens=True, noise_rate=1.0)
    calibration = draw([(toy(), 1.0)], tokenizer, request)
    assert calibration.tokens[:, 0].tolist() == [1] * 4
    assert not torch.isin(calibration.tokens[:, 1:], torch.tensor([1, 2])).any()
