"""The cached draw: what an experiment asks for, the reference set beside it, what a record says of both."""

import json
from unittest.mock import Mock

import pytest
import torch

from faqbench.calibration import DrawRequest, draw
from faqbench.config import UserError
from faqbench.config.calibration import matched
from faqbench.corpora import part_of, read_corpus
from faqbench.models import Model, load_tokenizer
from faqbench.pipeline.calibrating import calibration_set, reference_set
from faqbench.records import read_record
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
    from faqbench.models.sources import byte_tokenizer

    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


ROLES = {"qkv", "o", "gate_up", "down"}


def facts(data):
    return data.record.extra["calibration"]


def test_a_calibrated_run_says_how_its_set_was_drawn(ran, text_file):
    found = facts(ran("quant=awq", "seed=3"))
    assert (found["scenario"], found["seed"], found["n_samples"]) == ("matched", 3, 4)
    assert found["mixture"] == {str(text_file): 1.0}
    assert found["sources"][0]["origin"] == text_file.name
    assert found["window_start"] == "cut" and found["n_texts_used"] >= 1


def test_a_run_without_calibration_says_nothing_of_it(ran):
    assert "calibration" not in ran("quant=rtn").record.extra
    assert "calibration" not in ran("quant=fp").record.extra


def test_both_distances_are_recorded_for_every_role(ran):
    distance = facts(ran("quant=awq"))["bias_distance"]
    assert distance["reference"].startswith("16 windows of the selection part of ")
    assert 0 < distance["token_js"] < 1
    assert set(distance["activation_shift"]) == ROLES
    assert all(value > 0 for value in distance["activation_shift"].values())


def test_random_tokens_are_farther_than_a_matched_draw_in_tokens_and_activations(ran):
    matched = facts(ran("quant=awq"))["bias_distance"]
    noise = facts(ran("quant=awq", "scenario=random-tokens"))["bias_distance"]
    assert noise["token_js"] > 2 * matched["token_js"]
    assert noise["activation_shift"]["qkv"] > matched["activation_shift"]["qkv"]


@pytest.mark.parametrize("quant", ["gptq", "qep", "loaq"])
def test_a_method_without_statistics_measures_the_same_distance_by_a_pass_of_its_own(run, after, quant):
    gathered, cache = after("quant=awq")
    assert facts(run(f"quant={quant}")) == facts(gathered)
    assert facts(run(f"quant={quant}", "bits=4", cache=cache)) == facts(gathered)


def test_a_method_without_statistics_takes_the_means_that_another_gathered(run, after, monkeypatch):
    _, cache = after("quant=awq")
    refused = AssertionError("a second pass over the set")
    monkeypatch.setattr("faqbench.pipeline.calibrating.observe_means", Mock(side_effect=refused))
    assert facts(run("quant=gptq", cache=cache))["bias_distance"]["activation_shift"]["qkv"] > 0


def test_the_distance_depends_on_the_set_alone_and_is_measured_once(run, after):
    first, cache = after("quant=awq")
    second = run("quant=faq", "bits=4", cache=cache)
    assert facts(first) == facts(second)
    assert not first.record.stages["bias_distance"].cached
    assert second.record.stages["bias_distance"].cached


def test_a_text_without_a_selection_part_has_no_reference_and_says_so(ran, tmp_path):
    from faqbench.corpora import part_of

    lines = [f"Sentence {i} of a longer text, on weights and groups." for i in range(200)]
    path = tmp_path / "one-part.txt"
    path.write_text("\n\n".join(t for t in lines if part_of(t) != "selection"))
    distance = facts(ran("quant=awq", f"calibration.domain={path}"))["bias_distance"]
    assert distance["token_js"] is None
    assert "falls in its selection part" in distance["reason"]


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        (["scenario=label-leak", PROTOCOL], "Calibrated on the evaluation's own text on purpose"),
        (["calibration.n_samples=200", "allow_repeat=true"], "occur a second time"),
        (["calibration.mixture={TEXT: 0.99, OTHER: 0.01}"], "other.txt gave no window of 4"),
    ],
)
def test_what_flatters_or_surprises_is_a_warning_of_the_record(
    ran, text_file, tmp_path, overrides, warning
):
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text())
    paths = {"TEXT": text_file, "OTHER": other}
    for name, path in paths.items():
        overrides = [override.replace(name, str(path)) for override in overrides]
    assert any(warning in text for text in ran("quant=awq", *overrides).record.warnings)


def test_a_leak_is_marked_in_the_record(ran):
    found = facts(ran("quant=awq", "scenario=label-leak", PROTOCOL))
    assert found["allow_overlap"] == ["*"] and found["mixture"] is None
    assert found["domain"] == "evaluation text (wikitext2-32)"


def test_the_facts_are_json_in_the_folder(ran, folder_of):
    data = ran("quant=awq")
    assert read_record(folder_of(data)).extra["calibration"] == json.loads(json.dumps(facts(data)))


def test_measuring_it_does_not_read_the_weights_again(run, monkeypatch):
    filled, read = [], Model._read
    monkeypatch.setattr(Model, "_read", lambda m, p: filled.append((id(m), id(p))) or read(m, p))
    data = run("quant=awq")
    assert len(filled) == len(set(filled))
    assert not data.record.stages["quantize"].cached
    assert not data.record.stages["bias_distance"].cached
