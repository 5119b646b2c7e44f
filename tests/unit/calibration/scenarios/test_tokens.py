import numpy as np
import torch

from faqbench.calibration import draw
from faqbench.calibration.scenarios import change_tokens
from faqbench.config.calibration import matched

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
