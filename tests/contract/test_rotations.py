"""Cells of rotated models: same outputs before, other weights after, and what their records say."""

import numpy as np
import pytest

from faqbench.cli import main
from faqbench.cli.composing import conf_dir
from faqbench.config import UserError
from faqbench.pipeline import check_models

PROTOCOL = ("evaluation.protocols=[wikitext2-32]", "limit=4", "group_size=32")
FAMILIES = sorted(p.stem.removeprefix("tiny-") for p in conf_dir().glob("model/tiny-*.yaml"))


@pytest.fixture
def run(run_cell):
    return lambda *overrides: run_cell("model=tiny-llama", *PROTOCOL, *overrides)


def nll(data):
    return data.tokens["wikitext2-32"]


def divergence(data):
    return data.tokens["wikitext2-32.kl"].mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_rotated_and_passes_its_gates(run_cell, family):
    places = "quant.rotation.places=[R2,R4]" if family == "gemma3" else "quant.rotation.places=[R1,R2,R4]"
    for preset in ("hadamard-gptq", "w4a4-quarot"):
        _, data = run_cell(f"model=tiny-{family}", *PROTOCOL, f"quant={preset}", places)
        gates = {g.name: g for g in data.record.gates}
        assert gates["rotation_is_exact"].passed, gates["rotation_is_exact"].detail
        assert [g for g in data.record.gates if not g.passed] == []
        assert 0 < data.record.extra["rotation"]["logit_error"] < 1e-3


def test_at_eight_bits_a_rotated_model_is_the_model_again_also_by_divergence(run):
    _, full = run("quant=fp", "evaluation.kl=true")
    _, eight = run("quant=hadamard-rtn", "bits=8", "evaluation.kl=true", "quant.rotation.places=[R1,R2,R4]")
    _, two = run("quant=hadamard-rtn", "bits=2", "evaluation.kl=true")
    assert np.abs(nll(eight) - nll(full)).mean() < 0.05
    assert 0 < divergence(eight) < divergence(two) / 20


def test_r3_leaves_the_outputs_as_they_are_but_for_quantized_keys(run):
    keys = "quant.activations.kv_bits=8"
    _, plain = run("quant=rtn", "bits=8", keys)
    _, rotated = run("quant=rtn", "bits=8", keys, "quant.rotate=hadamard", "quant.rotation.places=[R3]")
    difference = np.abs(nll(plain) - nll(rotated)).mean()
    assert 0 < difference < 0.02
    assert rotated.record.bits_per_weight == plain.record.bits_per_weight


def test_an_untied_head_is_in_the_bits_of_the_record(run):
    _, plain = run("quant=rtn", "bits=4")
    _, rotated = run("quant=hadamard-rtn", "bits=4")
    _, heads = run("quant=hadamard-rtn", "bits=4", "quant.rotation.places=[R2]")
    n_weights = plain.layers["n_weights"].sum()
    assert heads.record.bits_per_weight == plain.record.bits_per_weight
    extra = rotated.record.bits_per_weight - plain.record.bits_per_weight
    assert extra == pytest.approx(16 * 257 * 64 / n_weights)
    assert rotated.record.extra["rotation"]["untied_weights"] == 257 * 64


def test_a_rotation_comes_before_scales_and_statistics_and_its_draw_counts(run):
    _, one = run("quant=awq", "quant.rotate=hadamard", "quant.clip=none")
    _, other = run("quant=awq", "quant.rotate=hadamard", "quant.clip=none", "quant.rotation.seed=1")
    _, random = run("quant=awq", "quant.rotate=random", "quant.clip=none")
    _, none = run("quant=awq", "quant.clip=none")
    assert len({tuple(d.layers["relative_error"]) for d in (one, other, random, none)}) == 4
    # The distance from the reference set is of the model as loaded.
    assert (
        one.record.extra["calibration"]["bias_distance"]
        == none.record.extra["calibration"]["bias_distance"]
    )


def test_a_size_without_a_matrix_is_mixed_in_blocks_and_the_record_says_so(run_cell):
    size = "model.random.intermediate_size=86", "group_size=-1"
    _, data = run_cell("model=tiny-llama", *size, "quant=hadamard-rtn", "quant.rotation.places=[R2,R4]")
    assert data.record.extra["rotation"]["sizes"] == {"R2": 16, "R4": 86}
    assert data.record.extra["rotation"]["in_blocks_of"] == {"R4": 2}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=tiny-gemma3", "quant=hadamard-rtn"], "a norm with a gain stands between"),
        (
            ["model=tiny-llama", "quant=hadamard-rtn", "model.random.intermediate_size=33",
             "quant.rotation.places=[R4]", "group_size=-1"],
            "no matrix of size 33, which is odd",
        ),
        (["model=tiny-llama", "quant=hadamard-rtn", "quant.rotation.places=[]"], "places is empty"),
        (["model=tiny-llama", "quant=hadamard-rtn", "quant.rotation.places=[R1,R1]"], "a place twice"),
        (["model=tiny-llama", "quant=hadamard-rtn", "quant.rotation.places=[R5]"], "R1"),
        (["model=tiny-llama", "quant=fp", "quant.rotate=hadamard"], "quant.round=none"),
        (["model=tiny-llama", "quant=rtn", "quant.rotate=hadamart"], "hadamard"),
    ],
)  # fmt: skip
def test_what_cannot_be_rotated_is_one_sentence_before_any_work(compose, overrides, words):
    with pytest.raises(UserError) as caught:
        check_models([compose(*overrides)])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rotated_run_is_not_exported(run, tmp_path, capsys):
    experiment, data = run("quant=hadamard-rtn", "bits=4")
    keys = f"into={tmp_path}/out", f"runs={experiment.paths.runs}", "format=compressed-tensors"
    assert main(["export", data.record.run_id, *keys]) == 2
    assert "quant.rotate=none" in capsys.readouterr().err
