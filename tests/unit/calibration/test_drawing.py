import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from faqbench.calibration import calibration_tokens, draw
from faqbench.config import UserError
from faqbench.corpora import part_of
from faqbench.stages import PlainProgress

TEXTS = [f"Text number {i}: " + "word " * (i % 7) for i in range(50)]


def by_letter(text, *, add_special_tokens, verbose):
    """A tokenizer of one token per character."""
    ids = [ord(c) for c in text]
    return {"input_ids": [1, *ids] if add_special_tokens else ids}


def drawn(texts=TEXTS, n_samples=4, seq_len=16, seed=0):
    return draw(texts, by_letter, n_samples=n_samples, seq_len=seq_len, seed=seed, domain="toy")


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others():
    assert torch.equal(drawn().tokens, drawn().tokens)
    assert drawn().fingerprint != drawn(seed=1).fingerprint


def test_windows_are_one_running_text_of_whole_documents_in_shuffled_order():
    calibration = drawn(n_samples=8)
    running = "".join(map(chr, calibration.tokens.flatten().tolist()))
    documents = running.split("\n\n")
    assert len(documents) == calibration.n_texts_used < len(TEXTS)
    assert set(documents[:-1]) <= set(TEXTS) and documents[:3] != TEXTS[:3]


def test_shape_and_type_are_what_a_model_takes():
    calibration = drawn(n_samples=3, seq_len=10)
    assert (tuple(calibration.tokens.shape), calibration.tokens.dtype) == ((3, 10), torch.int64)
    assert (calibration.window_start, calibration.domain) == ("cut", "toy")


def test_more_windows_of_one_seed_begin_with_the_fewer():
    assert torch.equal(drawn(n_samples=8).tokens[:4], drawn(n_samples=4).tokens)


def test_drawing_neither_reads_nor_moves_global_random_state():
    np.random.seed(3)
    torch.manual_seed(3)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = drawn()
    assert np.array_equal(np.random.get_state()[1], states[0])
    assert torch.equal(torch.get_rng_state(), states[1])
    np.random.seed(4)
    assert drawn().fingerprint == first.fingerprint


def test_the_fingerprint_can_be_made_by_anyone_and_knows_the_shape():
    calibration = drawn()
    content = b"(4, 16)" + calibration.tokens.numpy().tobytes()
    assert calibration.fingerprint == hashlib.sha256(content).hexdigest()
    assert drawn(n_samples=8, seq_len=8).fingerprint != calibration.fingerprint


def test_too_few_tokens_gives_both_numbers():
    with pytest.raises(UserError, match=r"has 14 tokens, but n_samples \* seq_len = 4 \* 16 = 64"):
        drawn(texts=["short", "texts"])


def test_exactly_enough_tokens_are_enough():
    assert drawn(texts=["x" * 62]).tokens.shape == (4, 16)


def test_an_experiments_tokens_follow_its_scenario_and_seed_from_the_calibration_part(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\n\n".join(TEXTS))
    experiment = SimpleNamespace(
        calibration_domain=str(path),
        n_calibration_samples=2,
        calibration=SimpleNamespace(seq_len=16, seed=5),
    )
    calibration = calibration_tokens(experiment, by_letter, PlainProgress())
    texts = [text for text in TEXTS if part_of(text) == "calibration"]
    same = draw(texts, by_letter, n_samples=2, seq_len=16, seed=5, domain=str(path))
    assert calibration.fingerprint == same.fingerprint


@pytest.mark.packaged
def test_wiki_windows_are_drawn_in_two_seconds_without_a_warning(recwarn, capfd):
    import time

    from transformers import AutoTokenizer

    from faqbench.assets import packaged_model
    from faqbench.corpora import domain_texts

    tokenizer = AutoTokenizer.from_pretrained(packaged_model("smollm2-135m", PlainProgress()))
    tokenizer.model_max_length = 8
    start = time.perf_counter()
    texts = domain_texts("wiki", "calibration", PlainProgress())
    calibration = draw(texts, tokenizer, n_samples=32, seq_len=512, seed=0, domain="wiki")
    assert time.perf_counter() - start < 2
    assert calibration.tokens.max() < len(tokenizer)
    assert capfd.readouterr().err == ""
