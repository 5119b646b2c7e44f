"""Experiments, and one sentence per mistake: the key, the value, what is allowed, the nearest spelling."""

import copy
from pathlib import Path

import pytest

from faqbench.config import UserError, did_you_mean, validate
from faqbench.config.calibration import matched


@pytest.fixture(scope="module")
def plain(compose):
    """A composed configuration as Hydra hands it over: dicts, lists and texts only."""
    return compose("model=tiny-llama", "quant=faq").model_dump(mode="json")


@pytest.fixture
def change(plain):
    """Return a copy with one dotted key set."""

    def make(key, value):
        raw = copy.deepcopy(plain)
        *path, last = key.split(".")
        section = raw
        for part in path:
            section = section[part]
        section[last] = value
        return raw

    return make


def mistake(raw):
    with pytest.raises(UserError) as caught:
        validate(raw)
    return str(caught.value)


def test_a_composed_configuration_is_valid_and_survives_json(plain):
    assert validate(plain).model_dump(mode="json") == plain


def test_an_experiment_cannot_be_changed(plain):
    with pytest.raises(ValueError, match="frozen"):
        validate(plain).bits = 4


@pytest.mark.parametrize(
    ("key", "offered"),
    [
        ("seeed", "seed"),
        ("quant.scal", "scale"),
        ("quant.preview.gama", "gamma"),
        ("calibration.n_sample", "n_samples"),
        ("evaluation.task", "tasks"),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest_spelling(change, key, offered):
    text = mistake(change(key, 1))
    assert f"Unknown key {key}." in text
    assert f"Did you mean '{offered}'?" in text and f"{offered}" in text.split("Keys there:")[1]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("quant.bits", 9, "bits=9 is not allowed: it should be less than or equal to 8."),
        ("quant.bits", 1, "bits=1 is not allowed: it should be greater than or equal to 2."),
        ("quant.bits", 3.5, "bits=3.5 is not allowed: it should be a valid integer."),
        ("quant.preview.gamma", -0.1, "gamma=-0.1 is not allowed: it should be greater than"),
        ("quant.preview.gamma", 1.5, "gamma=1.5 is not allowed: it should be less than"),
        ("quant.preview.window", -1, "window=-1 is not allowed"),
        ("calibration.seed", -1, "seed=-1 is not allowed"),
        ("calibration.seq_len", 4, "calibration.seq_len=4 is not allowed"),
        ("quant.symmetric", "yes", "symmetric=yes is not allowed"),
        ("limit", 0, "limit=0 is not allowed"),
        ("quant.gptq.damping", 0, "quant.gptq.damping=0.0 is not allowed"),
        ("quant.search.clip_max_shrink", 1, "quant.search.clip_max_shrink=1.0 is not allowed"),
        ("quant.gptaq.alpha", 2, "alpha=2.0 is not allowed: it should be less than or equal to 1."),
        ("quant.gptaq.beta", -1, "quant.gptaq.beta=-1.0 is not allowed"),
        ("quant.gptaq.original", 1.5, "quant.gptaq.original=1.5 is not allowed"),
        ("quant.qronos.alpha", 0, "quant.qronos.alpha=0.0 is not allowed: it should be greater"),
        ("quant.mse.p", 0, "quant.mse.p=0.0 is not allowed: it should be greater than 0."),
        ("quant.mse.steps", 0, "quant.mse.steps=0 is not allowed: it should be greater than or"),
        ("quant.refinement.steps", -1, "quant.refinement.steps=-1 is not allowed: it should be greater"),
        ("quant.refinement.batch", 0, "quant.refinement.batch=0 is not allowed"),
        ("quant.refinement.clip_rate", 0, "quant.refinement.clip_rate=0.0 is not allowed"),
        ("quant.refinement.offset_rate", 2, "offset_rate=2.0 is not allowed: it should be less"),
        ("quant.mse.max_shrink", 1, "quant.mse.max_shrink=1.0 is not allowed: it should be less"),
    ],
)
def test_a_value_out_of_range_names_the_knob_and_the_bound(change, key, value, expected):
    assert expected in mistake(change(key, value))


@pytest.mark.parametrize(
    ("key", "value", "offered"),
    [
        ("quant.scale", "awk", "awq"),
        ("quant.round", "nearst", "nearest"),
        ("quant.correct", "qpe", "qep"),
        ("quant.symmetric_grid", "halfrange", "half_range"),
        ("quant.refine", "lrqant", "lrquant"),
        ("quant.refinement.start", "laee", "lae"),
        ("quant.refinement.adapt_on", "evalution", "evaluation"),
        ("quant.preview.weights", "unifrom", "uniform"),
        ("dtype", "bfloat", "bfloat16"),
        ("calibration.tokens", "dropfirst", "drop_first"),
        ("tracking.name", "wand", "wandb"),
    ],
)
def test_a_word_that_is_not_one_of_a_few_gets_all_of_them_and_the_nearest(change, key, value, offered):
    text = mistake(change(key, value))
    assert text.startswith(f"{key}={value} is not allowed: it is ")
    assert f"'{offered}'" in text.split("Did you mean")[0]
    assert text.endswith(f"Did you mean '{offered}'?")


def test_qronos_beside_a_correction_is_refused(compose):
    with pytest.raises(UserError, match=r"solves for the weights anew.*quant\.correct=qep"):
        compose("model=tiny-llama", "quant=qronos", "quant.correct=qep")


def test_gptaq_beside_a_correction_that_leaves_it_nothing_is_refused(compose):
    loaq = ("model=tiny-llama", "quant=loaq-gptq", "quant.round=gptaq", "quant.correction.strength=1")
    roles = "quant.correction.roles=[qkv,o,gate_up,down]"
    with pytest.raises(UserError, match=r"nothing to make up for: quant\.correct=loaq.*quant\.round=gptq"):
        compose(*loaq, roles)
    with pytest.raises(UserError, match=r"Take quant\.round=foem, which is the same"):
        compose(*loaq, roles, "quant.gptaq.beta=0.2")
    assert compose(*loaq, "quant.correction.roles=[qkv,o,gate_up]").quant.round == "gptaq"
    assert compose(*loaq, roles, "quant.correction.strength=0.9").quant.round == "gptaq"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("quant.scale=awq", r"not with quant\.scale=awq\."),
        ("quant.correct=qep", r"not with quant\.correct=qep\."),
        ("quant.round=gptq", r"not with quant\.round=gptq\."),
        ("quant.round=none", r"quant\.refine must be none too\."),
        ("quant.search.loss=module", r"quant\.refine=lrquant searches none: leave it out\."),
    ],
)
def test_what_a_learned_block_does_not_go_with_is_refused(compose, override, named):
    with pytest.raises(UserError, match=named):
        compose("model=tiny-llama", "quant=lrquant", override)


@pytest.mark.parametrize(
    ("protocols", "said"), [("[]", "is empty"), ("[wikitext2-64,heldout-wiki-512]", r"names 2")]
)
def test_a_block_is_adapted_to_one_text(compose, protocols, said):
    keys = ["quant.refinement.adapt_on=evaluation", f"evaluation.protocols={protocols}"]
    with pytest.raises(UserError, match=rf"evaluation\.protocols .*{said}: give one\."):
        compose("model=tiny-llama", "quant=lrquant", *keys)
    assert compose("model=tiny-llama", "quant=awq", *keys).adapted_on is None


def test_a_symmetric_grid_of_asymmetric_codes_is_refused(compose):
    with pytest.raises(UserError, match=r"symmetric_grid=full_range .*needs symmetric=true\."):
        compose("model=tiny-llama", "quant=rtn", "quant.symmetric_grid=full_range")


def test_a_correction_of_a_role_that_does_not_exist_is_refused(change):
    text = mistake(change("quant.correction.roles", ["qkv", "mlp"]))
    assert "quant.correction.roles.1=mlp is not allowed" in text and "'gate_up'" in text


def test_a_key_that_is_missing_is_named(plain):
    raw = {**plain, "quant": {k: v for k, v in plain["quant"].items() if k != "scale"}}
    assert mistake(raw) == "quant.scale is missing."


def test_several_mistakes_are_all_said(change):
    raw = change("quant.bits", 9)
    raw["seeed"] = 1
    text = mistake(raw)
    assert "bits=9" in text and "seeed" in text


def test_a_mistake_inside_a_list_is_found_and_spelled(change):
    override = {"patern": "*", "bits": 4, "group_size": None}
    text = mistake(change("quant.overrides", [override]))
    assert "quant.overrides.0.pattern is missing" in text
    assert "Unknown key quant.overrides.0.patern. Did you mean 'pattern'?" in text


@pytest.mark.parametrize("group_size", [0, -2])
def test_a_group_size_is_positive_or_one_per_row(change, group_size):
    text = mistake(change("quant.group_size", group_size))
    assert f"group_size={group_size} is not allowed" in text and "-1" in text


@pytest.mark.parametrize("group_size", [0, -2])
def test_a_group_size_of_an_override_is_positive_or_one_per_row_too(change, group_size):
    override = {"pattern": "*", "bits": None, "group_size": group_size}
    assert "group_size" in mistake(change("quant.overrides", [override]))


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("evaluation.protocols", ["heldout-wiki-512", "wikitext2-512", "heldout-wiki-512"]),
        ("evaluation.tasks", ["boolq_validation", "boolq_validation"]),
        ("scenario.allow_overlap", ["*", "*"]),
        ("presearch.domains", ["wiki", "wiki"]),
        ("tracking.tags", ["a", "a"]),
        ("quant.skip", ["*.down_proj", "*.down_proj"]),
        ("quant.correction.roles", ["o", "o"]),
    ],
)
def test_what_is_named_twice_is_refused(change, key, names):
    text = mistake(change(key, names))
    assert text.startswith(f"{key}=[{names[0]},") and text.endswith(f" twice: {names[0]}.")


def test_a_value_that_a_presearch_would_try_twice_is_refused(plain):
    raw = copy.deepcopy(plain)
    raw["presearch"]["grids"][0]["window"] = [1, 2, 1]
    assert mistake(raw) == "presearch.grids=[1,2,1] names a value twice: 1."


def test_what_a_check_of_ours_says_is_said_without_pydantics_words(change):
    text = mistake(change("report.margin", "1furlong"))
    assert text.startswith("report.margin=1furlong: margin '1furlong' is not allowed; write 1%,")


def test_a_random_model_has_no_tokenizer_of_its_own(change):
    assert "set model.tokenizer=bytes" in mistake(change("model.tokenizer", None))


def test_stages_without_rounding_are_refused(change):
    assert "quant.round=none" in mistake(change("quant.round", "none"))


@pytest.mark.parametrize(("source", "needed"), [("packaged", "asset"), ("hub", "hub_id"), ("path", "path")])
def test_a_source_names_what_it_needs(change, source, needed):
    text = mistake(change("model.source", source))
    assert text == f"model.source={source} needs model.{needed}, which is not set."


def test_a_random_model_needs_its_settings(change):
    assert "needs model.random" in mistake(change("model.random", None))


def test_settings_of_a_random_model_may_be_lists(change):
    found = validate(change("model.random.layer_types", ["full_attention"] * 4))
    assert list(found.model.random["layer_types"]) == ["full_attention"] * 4


@pytest.mark.parametrize("name", ["", "-x", "a b", "../x", "a/b", "x" * 100])
def test_names_are_safe_as_folders(change, name):
    assert "report.name" in mistake(change("report.name", name))


def test_whole_numbers_are_taken_where_fractions_are_meant(change):
    assert validate(change("quant.preview.gamma", 1)).quant.preview.gamma == 1.0
    assert validate(change("quant.preview.alpha", 0)).quant.preview.alpha == 0.0


def test_paths_become_paths(change):
    found = validate(change("data.wikitext2_path", "some/file.txt"))
    assert found.data.wikitext2_path == Path("some/file.txt")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"calibration.mixture": {"wiki": 0.7, "code": 0.4}},
            "calibration.mixture={wiki: 0.7, code: 0.4} has weights that sum to 1.1; they must sum to 1.",
        ),
        ({"scenario.mixture": {"wiki": 0.5}}, "scenario.mixture={wiki: 0.5} has weights that sum to"),
        ({"calibration.mixture": {}}, "calibration.mixture={} has weights that sum to 0"),
        (
            {"scenario.mixture": {"wiki": 1}, "scenario.domain": "code"},
            "scenario.domain=code and scenario.mixture are both set",
        ),
        ({"scenario.skew": 0.5}, "scenario.skew=0.5 is the share of windows from scenario.domain"),
        (
            {"scenario.min_characters": 9, "scenario.max_characters": 8},
            "scenario.min_characters=9 is more than scenario.max_characters=8",
        ),
        ({"scenario.noise_rate": 1.5}, "scenario.noise_rate=1.5 is not allowed"),
        ({"calibration.mixture": {"wiki": 1.5}}, "calibration.mixture.wiki=1.5 is not allowed"),
        ({"calibration.documents": "apat"}, "Did you mean 'apart'?"),
    ],
)
def test_a_calibration_that_means_nothing_is_one_sentence(plain, changes, sentence):
    raw = copy.deepcopy(plain)
    for key, value in changes.items():
        group, name = key.split(".")
        raw[group][name] = value
    text = mistake(raw)
    assert sentence in text and "\n" not in text


def test_a_mixture_of_whole_numbers_and_rounded_thirds_is_a_mixture(change):
    thirds = {"wiki": 0.3333333, "code": 0.3333333, "math": 0.3333334}
    assert validate(change("calibration.mixture", {"wiki": 1})).calibration.mixture == {"wiki": 1.0}
    assert validate(change("calibration.mixture", thirds)).calibration.mixture == thirds


@pytest.mark.parametrize(
    ("word", "expected"),
    [("fqa", "faq"), ("qaf", "faq"), ("AWQ", "awq"), ("rtn ", "rtn"), ("gptqq", "gptq")],
)
def test_the_nearest_spelling_is_offered(word, expected):
    known = ["awq", "faq", "rtn", "gptq"]
    assert did_you_mean(word, known) == f" Did you mean '{expected}'?"


@pytest.mark.parametrize("word", ["zzz", "", "something-else"])
def test_nothing_is_offered_where_nothing_is_near(word):
    assert did_you_mean(word, ["awq", "faq"]) == ""


def test_the_offer_keeps_the_spelling_of_what_is_known():
    assert did_you_mean("wikitext", ["WikiText-2"]) == " Did you mean 'WikiText-2'?"


def test_a_users_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize(
    ("quant", "quantizes", "needs_calibration"),
    [
        ("fp", False, False),
        ("rtn", True, False),
        ("awq", True, True),
        ("faq", True, True),
        ("gptq", True, True),
        ("qep", True, True),
        ("loaq", True, True),
    ],
)
def test_a_method_says_whether_it_quantizes_and_what_it_reads(compose, quant, quantizes, needs_calibration):
    experiment = compose("model=tiny-llama", f"quant={quant}")
    assert experiment.quantizes is quantizes
    assert experiment.needs_calibration is needs_calibration


def test_a_scenario_overrules_the_calibration(compose):
    experiment = compose("model=tiny-llama", "scenario=math-only", "scenario.n_samples=3")
    assert experiment.calibration_mixture == {"math": 1.0}
    assert experiment.n_calibration_samples == 3


def test_without_a_scenario_the_calibration_stands(compose):
    experiment = compose("model=tiny-llama", "calibration=code")
    found = (experiment.calibration_mixture, experiment.n_calibration_samples)
    assert found == ({"code": 1.0}, 32)


@pytest.mark.parametrize(
    ("overrides", "mixture"),
    [
        (["calibration.mixture={wiki: 0.7, code: 0.3}"], {"wiki": 0.7, "code": 0.3}),
        (["scenario=mixture"], {"wiki": 0.5, "code": 0.5}),
        (["scenario=mixture", "scenario.skew=0.25"], {"wiki": 0.75, "code": 0.25}),
        (["scenario=mixture", "scenario.skew=0"], {"wiki": 1.0}),
        (["scenario=mixture", "scenario.skew=1"], {"code": 1.0}),
        (["scenario=mixture", "calibration=code"], {"code": 1.0}),
        (["scenario.mixture={math: 0.5, code: 0.5}"], {"math": 0.5, "code": 0.5}),
        (
            ["scenario.mixture={math: 0.5, code: 0.5}", "scenario.skew=0.5"],
            {"wiki": 0.5, "math": 0.25, "code": 0.25},
        ),
    ],
)
def test_a_mixture_is_calibrations_own_and_the_scenarios_share(compose, overrides, mixture):
    found = compose("model=tiny-llama", *overrides).calibration_mixture
    assert found == pytest.approx(mixture)


def test_what_a_model_needs_of_bos_goes_to_calibration_and_evaluation_alike(compose):
    gemma, llama = compose("model=gemma3-270m"), compose("model=tiny-llama")
    assert gemma.calibration.add_bos and gemma.evaluation.add_bos
    assert not llama.calibration.add_bos and not llama.evaluation.add_bos


def test_the_matched_scenario_in_code_is_the_one_in_conf(compose):
    assert compose("model=tiny-llama").scenario == matched()


@pytest.mark.parametrize(
    ("own", "limit", "expected"),
    [("null", "null", None), ("4", "null", 4), ("null", "3", 3), ("4", "3", 3), ("2", "3", 2)],
)
def test_a_limit_caps_windows_and_documents(compose, own, limit, expected):
    experiment = compose(
        "model=tiny-llama", f"evaluation.n_windows={own}", f"evaluation.n_documents={own}", f"limit={limit}"
    )
    assert (experiment.n_windows(), experiment.n_documents()) == (expected, expected)
