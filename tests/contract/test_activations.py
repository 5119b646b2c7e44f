"""Cells with quantized activations, and of rotated models: what changes, and what their records say."""

import numpy as np
import pytest

from faqbench.cli import main
from faqbench.config import UserError, run_id
from faqbench.config.section import conf_dir
from faqbench.pipeline import check_models
from faqbench.report.analysis import _contests
from faqbench.report.facts import repeat_command
from faqbench.report.panels import build_panels

PROTOCOL = ("evaluation.protocols=[wikitext2-32]", "limit=4")
STATIC = ("quant.activations.granularity=tensor", "quant.activations.dynamic=false")


@pytest.fixture
def run(run_cell):
    return lambda *overrides: run_cell("model=tiny-llama", *PROTOCOL, *overrides)


def nll(data):
    return data.tokens["wikitext2-32"]


def test_activations_change_the_scores_and_no_weight(run):
    _, weights = run("quant=rtn", "bits=4", "group_size=-1", "symmetric=true")
    _, both = run("quant=w4a4")
    assert weights.layers.drop(columns="seconds").equals(both.layers.drop(columns="seconds"))
    assert not np.array_equal(nll(weights), nll(both))


def test_a_cell_after_one_with_quantized_activations_has_none(run):
    _, before = run("quant=rtn", "bits=4", "quant.search.n_grid=7")
    run("quant=w4a4", "bits=3")
    _, after = run("quant=rtn", "bits=4", "quant.search.n_grid=8", "evaluation.batch_tokens=64")
    assert np.allclose(nll(before), nll(after), atol=1e-5)


def test_fewer_bits_of_activations_are_further_from_the_weights_alone(run):
    _, plain = run("quant=rtn", "bits=8", "group_size=-1", "symmetric=true")
    distance = []
    for bits in (8, 4, 2):
        _, data = run("quant=w8a8", f"quant.activations.bits={bits}")
        distance.append(np.abs(nll(data) - nll(plain)).mean())
    assert 0 < distance[0] < distance[1] / 4
    assert distance[1] < distance[2]


def test_only_the_targeted_inputs_are_rounded(run):
    _, every = run("quant=w4a4")
    _, some = run("quant=w4a4", "quant.activations.targets=[down]")
    assert not np.array_equal(nll(every), nll(some))
    assert some.record.extra["activations"]["quantized"] == ["inputs of down"]


@pytest.mark.parametrize("family", ["gemma3", "llama", "mistral", "phi3", "qwen2", "qwen3"])
def test_every_family_takes_quantized_keys_values_and_queries(run_cell, family):
    def scores(*overrides):
        _, data = run_cell(f"model=tiny-{family}", *PROTOCOL, "quant=rtn", "bits=8", *overrides)
        assert [g for g in data.record.gates if not g.passed] == []
        return nll(data)

    plain = scores()
    eight, two = (scores(f"quant.activations.kv_bits={bits}") for bits in (8, 2))
    both = scores("quant.activations.bits=8", "quant.activations.bmm=true")
    assert 0 < np.abs(eight - plain).mean() < np.abs(two - plain).mean() / 4
    assert np.abs(both - plain).mean() > 0


def test_a_record_names_the_operands_of_attention_on_the_grid(run):
    experiment, data = run("quant=w4a4", "quant.activations.kv_bits=4")
    activations = data.record.extra["activations"]
    assert "-w4a4kv4-" in run_id(experiment)
    assert activations["quantized"][-3:] == ["keys", "values", "KV cache"]
    assert activations["not_quantized"] == ["queries", "probabilities", "output head"]
    _, weights = run("quant=w4a4", "quant.activations.bits=null", "quant.activations.kv_bits=4")
    assert weights.record.extra["activations"]["quantized"] == ["keys", "values", "KV cache"]


def test_static_ranges_come_from_calibration_and_dynamic_ones_need_none(run):
    dynamic, _ = run("quant=w8a8")
    static, data = run("quant=w8a8", *STATIC)
    assert static.needs_calibration and not dynamic.needs_calibration
    assert "calibration" in data.record.fingerprints
    assert data.record.extra["activations"]["range"] == "per tensor, of the calibration tokens"
    _, wide = run("quant=w8a8")
    assert np.abs(nll(data) - nll(wide)).mean() < 0.05


def test_a_rounding_that_sees_quantized_activations_gives_other_weights(run):
    seen = "quant.activations.seen_by_rounding=true"
    cells = [
        run("quant=w4a4", "quant.round=gptq", *more)[1]
        for more in ((), (seen,), (seen, "quant.scale=smoothquant"), (seen, "quant.correct=qep"))
    ]
    errors = [tuple(data.layers["relative_error"]) for data in cells]
    assert len(set(errors)) == 4
    assert [data.record.extra["activations"]["seen_by_rounding"] for data in cells[:2]] == [False, True]


@pytest.mark.parametrize("family", ["gemma3", "mistral", "phi3", "qwen2", "qwen3"])
def test_every_family_takes_quantized_activations_static_and_smoothed(run_cell, family):
    for preset, more in (("w4a4-lae", ()), ("smoothquant", STATIC)):
        _, data = run_cell(f"model=tiny-{family}", *PROTOCOL, f"quant={preset}", *more)
        assert [g for g in data.record.gates if not g.passed] == []
        scaled = data.layers.loc[data.layers["scale_range"] > 1, "role"]
        assert set(scaled) == {"qkv", "gate_up"}


def test_a_run_id_names_the_bits_of_activations(compose):
    assert "-w4a8-" in run_id(compose("model=tiny-llama", "quant=w4a8"))
    assert "-w4-" in run_id(compose("model=tiny-llama", "quant=rtn", "bits=4"))


def test_options_of_activations_count_only_while_activations_are_quantized(compose):
    def name(*overrides):
        return run_id(compose("model=tiny-llama", *overrides)).rsplit("-", 1)[1]

    assert name("quant=rtn") == name("quant=rtn", "quant.activations.symmetric=false")
    assert name("quant=w8a8") != name("quant=w8a8", "quant.activations.symmetric=false")
    assert name("quant=awq") == name("quant=awq", "quant.smoothing.alpha=0.7")


def test_a_report_ranks_weights_alone_and_weights_with_activations_apart(run):
    weights = ("bits=4", "group_size=-1", "symmetric=true")
    cells = [run("quant=rtn", *weights), run("quant=awq", *weights), run("quant=w4a4")]
    (panel,) = build_panels([data.record for _, data in cells])
    contests = [{panel.rows[i].method for i in c.rows} for c in _contests(panel, None)]
    assert sorted(map(sorted, contests)) == [["awq", "rtn"], ["w4a4"]]
    assert {row.method: row.widths for row in panel.rows} == {"rtn": "4", "awq": "4", "w4a4": "W4A4"}


def test_a_report_repeats_a_run_with_its_activations(run):
    _, plain = run("quant=rtn", "bits=4", "group_size=-1", "symmetric=true")
    more = ("quant.activations.bits=8", "quant.activations.symmetric=false", "quant.activations.kv_bits=4")
    _, data = run("quant=rtn", "bits=4", "group_size=-1", "symmetric=true", *more)
    (panel,) = build_panels([plain.record, data.record])
    assert "W4A8KV4" in {row.widths for row in panel.rows}
    words = repeat_command(data.record).split()
    assert set(more) <= set(words)
    assert not any(word.startswith("activations") for word in words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["quant=w4a4", "quant.activations.dynamic=false"], "granularity=token"),
        (["quant=w4a4", "quant.activations.granularity=tensor"], "beside a request"),
        (["quant=fp", "quant.activations.bits=4"], "quant.round=none"),
        (["quant=w4a4", "quant.activations.targets=[]"], "targets is empty"),
        (["quant=w4a4", "quant.activations.bits=1"], "2"),
        (["quant=rtn", "quant.activations.bmm=true"], "quant.activations.bits is null"),
        (["quant=fp", "quant.activations.kv_bits=4"], "quant.activations.kv_bits=4 needs"),
        (["quant=hadamard-rtn", "quant.rotation.places=[R3]"], "while keys are left as they are"),
        (["quant=w4a4", "quant.activations.seen_by_rounding=true"], "changes nothing"),
        (["quant=smoothquant", "quant.smoothing.alpha=1.5"], "quant.smoothing.alpha"),
        (["quant=w4a4", "quant.activations.clip_ratio=0"], "clip_ratio"),
    ],
)
def test_what_makes_no_sense_is_one_sentence_when_composing(compose, overrides, words):
    with pytest.raises(UserError) as caught:
        compose("model=tiny-llama", *overrides)
    assert words in str(caught.value)
    assert str(caught.value).count("\n") == 0


SHORT_PROTOCOL = ("evaluation.protocols=[wikitext2-32]", "limit=4", "group_size=32")
FAMILIES = sorted(p.stem.removeprefix("tiny-") for p in conf_dir().glob("model/tiny-*.yaml"))


@pytest.fixture
def run_rotated(run_cell):
    return lambda *overrides: run_cell("model=tiny-llama", *SHORT_PROTOCOL, *overrides)


def divergence(data):
    return data.tokens["wikitext2-32.kl"].mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_rotated_and_passes_its_gates(run_cell, family):
    places = "quant.rotation.places=[R2,R4]" if family == "gemma3" else "quant.rotation.places=[R1,R2,R4]"
    for preset in ("hadamard-gptq", "w4a4-quarot"):
        _, data = run_cell(f"model=tiny-{family}", *SHORT_PROTOCOL, f"quant={preset}", places)
        gates = {g.name: g for g in data.record.gates}
        assert gates["rotation_is_exact"].passed, gates["rotation_is_exact"].detail
        assert [g for g in data.record.gates if not g.passed] == []
        assert 0 < data.record.extra["rotation"]["logit_error"] < 1e-3


def test_at_eight_bits_a_rotated_model_is_the_model_again_also_by_divergence(run_rotated):
    _, full = run_rotated("quant=fp", "evaluation.kl=true")
    _, eight = run_rotated(
        "quant=hadamard-rtn", "bits=8", "evaluation.kl=true", "quant.rotation.places=[R1,R2,R4]"
    )
    _, two = run_rotated("quant=hadamard-rtn", "bits=2", "evaluation.kl=true")
    assert np.abs(nll(eight) - nll(full)).mean() < 0.05
    assert 0 < divergence(eight) < divergence(two) / 20


def test_r3_leaves_the_outputs_as_they_are_but_for_quantized_keys(run_rotated):
    keys = "quant.activations.kv_bits=8"
    _, plain = run_rotated("quant=rtn", "bits=8", keys)
    _, rotated = run_rotated(
        "quant=rtn", "bits=8", keys, "quant.rotate=hadamard", "quant.rotation.places=[R3]"
    )
    difference = np.abs(nll(plain) - nll(rotated)).mean()
    assert 0 < difference < 0.02
    assert rotated.record.bits_per_weight == plain.record.bits_per_weight


def test_an_untied_head_is_in_the_bits_of_the_record(run_rotated):
    _, plain = run_rotated("quant=rtn", "bits=4")
    _, rotated = run_rotated("quant=hadamard-rtn", "bits=4")
    _, heads = run_rotated("quant=hadamard-rtn", "bits=4", "quant.rotation.places=[R2]")
    n_weights = plain.layers["n_weights"].sum()
    assert heads.record.bits_per_weight == plain.record.bits_per_weight
    extra = rotated.record.bits_per_weight - plain.record.bits_per_weight
    assert extra == pytest.approx(16 * 257 * 64 / n_weights)
    assert rotated.record.extra["rotation"]["untied_weights"] == 257 * 64


def test_a_rotation_comes_before_scales_and_statistics_and_its_draw_counts(run_rotated):
    _, one = run_rotated("quant=awq", "quant.rotate=hadamard", "quant.clip=none")
    _, other = run_rotated("quant=awq", "quant.rotate=hadamard", "quant.clip=none", "quant.rotation.seed=1")
    _, random = run_rotated("quant=awq", "quant.rotate=random", "quant.clip=none")
    _, none = run_rotated("quant=awq", "quant.clip=none")
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


def test_a_rotated_run_is_not_exported(run_rotated, tmp_path, capsys):
    experiment, data = run_rotated("quant=hadamard-rtn", "bits=4")
    keys = f"into={tmp_path}/out", f"runs={experiment.paths.runs}", "format=compressed-tensors"
    assert main(["export", data.record.run_id, *keys]) == 2
    assert "quant.rotate=none" in capsys.readouterr().err
