"""What a record says of its calibration set."""

import json
import shutil
from unittest.mock import Mock

import pytest

from faqbench.models import Model
from faqbench.records import read_record

ROLES = {"qkv", "o", "gate_up", "down"}
PROTOCOL = "evaluation.protocols=[wikitext2-32]"


def facts(data):
    return data.record.extra["calibration"]


def test_a_calibrated_run_says_how_its_set_was_drawn(run, text_file):
    found = facts(run("quant=awq", "seed=3"))
    assert (found["scenario"], found["seed"], found["n_samples"]) == ("matched", 3, 4)
    assert found["mixture"] == {str(text_file): 1.0}
    assert found["sources"][0]["origin"] == text_file.name
    assert found["window_start"] == "cut" and found["n_texts_used"] >= 1


def test_a_run_without_calibration_says_nothing_of_it(run):
    assert "calibration" not in run("quant=rtn").record.extra
    assert "calibration" not in run("quant=fp").record.extra


def test_both_distances_are_recorded_for_every_role(run):
    distance = facts(run("quant=awq"))["bias_distance"]
    assert distance["reference"].startswith("16 windows of the selection part of ")
    assert 0 < distance["token_js"] < 1
    assert set(distance["activation_shift"]) == ROLES
    assert all(value > 0 for value in distance["activation_shift"].values())


def test_random_tokens_are_farther_than_a_matched_draw_in_tokens_and_activations(run):
    matched = facts(run("quant=awq"))["bias_distance"]
    noise = facts(run("quant=awq", "scenario=random-tokens"))["bias_distance"]
    assert noise["token_js"] > 2 * matched["token_js"]
    assert noise["activation_shift"]["qkv"] > matched["activation_shift"]["qkv"]


@pytest.mark.parametrize("quant", ["gptq", "qep", "loaq"])
def test_a_method_without_statistics_measures_the_same_distance_by_a_pass_of_its_own(run, quant, tmp_path):
    alone = facts(run(f"quant={quant}"))
    shutil.rmtree(tmp_path / "cache")
    assert facts(run("quant=awq")) == alone
    shutil.rmtree(tmp_path / "runs")
    assert facts(run(f"quant={quant}", "bits=4")) == alone


def test_a_method_without_statistics_takes_the_means_that_another_gathered(run, monkeypatch):
    run("quant=awq")
    refused = AssertionError("a second pass over the set")
    monkeypatch.setattr("faqbench.pipeline.bias.observe_means", Mock(side_effect=refused))
    assert facts(run("quant=gptq"))["bias_distance"]["activation_shift"]["qkv"] > 0


def test_the_distance_depends_on_the_set_alone_and_is_measured_once(run):
    first, second = run("quant=awq"), run("quant=faq", "bits=4")
    assert facts(first) == facts(second)
    assert not first.record.stages["bias_distance"].cached
    assert second.record.stages["bias_distance"].cached


def test_a_text_without_a_selection_part_has_no_reference_and_says_so(run, tmp_path):
    from faqbench.corpora import part_of

    lines = [f"Sentence {i} of a longer text, on weights and groups." for i in range(200)]
    path = tmp_path / "one-part.txt"
    path.write_text("\n\n".join(t for t in lines if part_of(t) != "selection"))
    distance = facts(run("quant=awq", f"calibration.domain={path}"))["bias_distance"]
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
    run, text_file, tmp_path, overrides, warning
):
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text())
    paths = {"TEXT": text_file, "OTHER": other}
    for name, path in paths.items():
        overrides = [override.replace(name, str(path)) for override in overrides]
    assert any(warning in text for text in run("quant=awq", *overrides).record.warnings)


def test_a_leak_is_marked_in_the_record(run):
    found = facts(run("quant=awq", "scenario=label-leak", PROTOCOL))
    assert found["allow_overlap"] == ["*"] and found["mixture"] is None
    assert found["domain"] == "evaluation text (wikitext2-32)"


def test_the_facts_are_json_in_the_folder(run, cell):
    from faqbench.config import run_id

    data = run("quant=awq")
    folder = cell("quant=awq").paths.runs / run_id(cell("quant=awq"))
    assert read_record(folder).extra["calibration"] == json.loads(json.dumps(facts(data)))


def test_measuring_it_does_not_read_the_weights_again(run, monkeypatch):
    filled, read = [], Model._read
    monkeypatch.setattr(Model, "_read", lambda m, p: filled.append((id(m), id(p))) or read(m, p))
    data = run("quant=awq")
    assert len(filled) == len(set(filled))
    assert not data.record.stages["quantize"].cached
    assert not data.record.stages["bias_distance"].cached
