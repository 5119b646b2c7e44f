"""The cached draw: what an experiment asks for, and the reference set beside it."""

import pytest
import torch

from faqbench.calibration import DrawRequest, draw
from faqbench.config import UserError
from faqbench.config.calibration import matched
from faqbench.corpora import part_of, read_corpus
from faqbench.models import load_tokenizer
from faqbench.pipeline.calibrating import calibration_set, reference_set
from faqbench.stages import PlainProgress, StageCache

PROTOCOL = "evaluation.protocols=[wikitext2-32]"


@pytest.fixture
def drawn(cell, tmp_path):
    """Return the set of a cell, and whether it was cached."""

    def make(*overrides):
        experiment = cell("quant=awq", *overrides)
        tokenizer = load_tokenizer(experiment.model, PlainProgress())
        return calibration_set(experiment, tokenizer, StageCache(tmp_path / "c"), PlainProgress())

    return make


@pytest.fixture
def reference(cell, tmp_path):
    def make(*overrides):
        experiment = cell("quant=awq", *overrides)
        tokenizer = load_tokenizer(experiment.model, PlainProgress())
        return reference_set(experiment, tokenizer, StageCache(tmp_path / "c"), PlainProgress())

    return make


def test_an_experiments_tokens_follow_its_seed_from_the_calibration_part(drawn, cell, text_file):
    found, _ = drawn("seed=5")
    experiment = cell("quant=awq")
    tokenizer = load_tokenizer(experiment.model, PlainProgress())
    corpus = read_corpus(str(text_file), "calibration", experiment.calibration, PlainProgress())
    request = DrawRequest(
        n_samples=4, seq_len=32, seed=5, apart=False, bos=None, allow_repeat=False, scenario=matched()
    )
    assert found.fingerprint == draw([(corpus, 1.0)], tokenizer, request).fingerprint
    assert all(part_of(text) == "calibration" for text in found.texts)


def test_a_set_is_drawn_once_and_read_back_as_it_was(drawn):
    first, cached = drawn("scenario=noise-injected")
    again, cached_again = drawn("scenario=noise-injected")
    assert (cached, cached_again) == (False, True)
    assert torch.equal(first.tokens, again.tokens) and first.texts == again.texts


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "calibration.n_samples=3",
        "calibration.seq_len=16",
        "calibration.documents=apart",
        "calibration.add_bos=true",
        "allow_repeat=true",
        "scenario.noise_rate=0.1",
        "scenario.length_power=1",
        "scenario.copies=2",
        "scenario=shuffled-tokens",
        "scenario=random-tokens",
    ],
)
def test_other_settings_are_another_draw(drawn, override):
    drawn()
    assert not drawn(override)[1]


def test_a_changed_file_is_another_draw(drawn, tmp_path, text_file):
    path = tmp_path / "mine.txt"
    path.write_text(text_file.read_text())
    override = f"calibration.domain={path}"
    first, _ = drawn(override)
    path.write_text(text_file.read_text().replace("weight", "wait"))
    second, cached = drawn(override)
    assert not cached and first.fingerprint != second.fingerprint


def test_a_scenario_reads_its_own_domain(drawn, tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("\n\n".join(f"Something else, number {i}, entirely." for i in range(60)))
    found, _ = drawn(f"scenario.domain={path}", "scenario.skew=0.5")
    assert dict(found.n_windows_of)[str(path)] == 2
    assert any(text.startswith("Something") for text in found.texts)


def test_a_leak_is_the_evaluations_own_windows(drawn, text_file):
    found, _ = drawn("scenario=label-leak", PROTOCOL)
    stream = bytes_of(text_file.read_text())
    windows = {tuple(stream[i : i + 32]) for i in range(0, len(stream) - 31, 32)}
    assert {tuple(row.tolist()) for row in found.tokens} <= windows
    assert found.sources[0]["origin"] == "windows of protocol wikitext2-32"


def test_a_leak_without_a_protocol_is_one_sentence(drawn):
    with pytest.raises(UserError, match=r"scenario.leak=true .* evaluation.protocols, and there is"):
        drawn("scenario=label-leak")


def test_a_scenario_that_leaves_too_little_gives_both_numbers_unless_texts_may_repeat(drawn):
    few = ("scenario=short-documents", "scenario.max_characters=110", "calibration.n_samples=100")
    with pytest.raises(UserError, match=r"under scenario=short-documents has \d+ tokens, but .*3200"):
        drawn(*few)
    found, _ = drawn(*few, "allow_repeat=true")
    assert tuple(found.tokens.shape) == (100, 32) and found.repeated_share > 0.1


def test_the_reference_is_the_plain_selection_text_whatever_the_scenario_and_seed(reference):
    first = reference("calibration.n_reference=2")
    assert all(part_of(text) == "selection" for text in first.texts)
    for override in (
        "seed=3",
        "scenario=shuffled-tokens",
        "scenario=random-tokens",
        "scenario=few-samples",
    ):
        assert reference("calibration.n_reference=2", override).fingerprint == first.fingerprint


def bytes_of(text):
    from faqbench.models.random_model import byte_tokenizer

    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
