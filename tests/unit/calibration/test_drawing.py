"""Drawing a calibration set, biased or not; what it says of itself, and how far it lies from another."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from faqbench.calibration import (
    CalibrationSet,
    DrawRequest,
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
from faqbench.calibration.scenarios import change_tokens, draw_order, of_length, rarity_of
from faqbench.config import UserError
from faqbench.config.calibration import ScenarioSection, matched
from faqbench.corpora import Corpus


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


TEXTS = tuple(f"Text number {i}: " + "word " * (i % 7) for i in range(50))


class LetterTokenizer:
    """Token ids are code points; 1 and 2 are special."""

    bos_token_id: int | None = 1
    all_special_ids = (1, 2)

    def __call__(self, text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        ids = [ord(c) for c in text]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(128)}


@pytest.fixture
def tokenizer() -> LetterTokenizer:
    return LetterTokenizer()


def corpus(texts: Sequence[str] = TEXTS, domain: str = "toy") -> Corpus:
    return Corpus(
        domain=domain, part="calibration", texts=tuple(texts), origin="a test", fingerprint="0" * 64
    )


def scenario(**changes: Any) -> ScenarioSection:
    return matched().model_copy(update=changes)


@pytest.fixture
def request_for() -> Callable[..., DrawRequest]:
    def make(n_samples: int = 4, seq_len: int = 16, seed: int = 0, **changes: Any) -> DrawRequest:
        names = {k: changes.pop(k) for k in ("apart", "bos", "allow_repeat") if k in changes}
        settings: dict[str, Any] = {"apart": False, "bos": None, "allow_repeat": False}
        return DrawRequest(
            n_samples=n_samples,
            seq_len=seq_len,
            seed=seed,
            scenario=scenario(**changes),
            **(settings | names),
        )

    return make


@pytest.fixture
def toy() -> Callable[..., Corpus]:
    return corpus


@pytest.fixture
def drawn(
    toy: Callable[..., Corpus], tokenizer: LetterTokenizer, request_for: Callable[..., DrawRequest]
) -> Callable[..., CalibrationSet]:
    def make(texts: Sequence[str] | None = None, **changes: Any) -> CalibrationSet:
        source = toy() if texts is None else toy(texts)
        return draw([(source, 1.0)], tokenizer, request_for(**changes))

    return make


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
